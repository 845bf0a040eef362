"""What annotators and voters share who use the page without a browser."""

import re


def come_in(client, name="heron", token=""):
    """Come in by the form of the first page, as it is shown, and return the reply."""
    fields = dict(re.findall(r'name="(consent_line)" value="([^"]+)"', client.get("/").text))
    return client.post("/join", data=fields | {"name": name, "consent": "yes", "token": token})

import pytest

from mmrlhf.text.addresses import is_local_url, is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_is_loopback_knows_the_names_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "2130706433"]
)
def test_is_loopback_refuses_all_others(host):
    assert not is_loopback(host)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://127.0.0.1", "http://[::1]:8000", "//LOCALHOST:80"])
def test_is_local_url_reads_the_host(url):
    assert is_local_url(url)


@pytest.mark.parametrize("url", ["http://example.com/localhost", "http://localhost@example.com", "//[::1", "localhost", ""])
def test_is_local_url_is_false_for_other_hosts_and_broken_urls(url):
    assert not is_local_url(url)

"""The command line: `mmrlhf COMMAND --config FILE --field value ...`.

app         the commands by name, and `main`, which runs one
parser      flags from the fields of configuration classes; help and error messages
commands    what a command's arguments become: a call of its module
label       the commands of `mmrlhf label`
arena       the commands of `mmrlhf arena`
"""

from mmrlhf.cli.app import main

__all__ = ["main"]

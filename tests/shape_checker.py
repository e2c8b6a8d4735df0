"""The type checker of the import hook in conftest.py: beartype, with an int accepted where a float is wanted."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))

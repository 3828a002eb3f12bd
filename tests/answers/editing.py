"""Answers made from others by changing a few words."""


def changed(source: str, *changes: str) -> str:
    """The source with some of its text replaced: old, new, old, new. Text that is not there is a slip of the bank."""
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in source, old
        source = source.replace(old, new)
    return source

"""Files that are there whole, or not at all."""

import os


def write_whole(path, content):
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(content, encoding="utf-8", errors="replace")  # half a surrogate pair is "?"
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise

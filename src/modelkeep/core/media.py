"""What kind of file a name promises: it is part of a version's content identity, so one table holds for every
door by which files come. Nobody looks into a file here.
"""

import mimetypes
import posixpath

MEDIA_TYPES = {
    ".onnx": "application/vnd.onnx",
    ".skops": "application/vnd.skops",
    ".joblib": "application/vnd.joblib",
    ".pkl": "application/vnd.python.pickle",
    ".pickle": "application/vnd.python.pickle",
    ".safetensors": "application/vnd.safetensors",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".md": "text/markdown",
    ".parquet": "application/vnd.apache.parquet",
}
"""Ends of file names to media types; what is not here is looked up in the standard library's own table."""
UNKNOWN = "application/octet-stream"
"""What a file is when its name does not say."""


def media_type(path: str) -> str:
    """What kind of file a name promises."""
    end = posixpath.splitext(path)[1].lower()
    return MEDIA_TYPES.get(end) or mimetypes.guess_type(path)[0] or UNKNOWN

"""MLflow's prompts: models whose versions are texts. Here stand their tags and what makes a prompt of
something.

A prompt's version is a version like any other, with its text as the one file. Filling a text in is the
client's part.
"""

from collections.abc import Mapping

IS_PROMPT = "mlflow.prompt.is_prompt"
"""The tag that makes a prompt of a model or version."""
PROMPT_TEXT = "mlflow.prompt.text"
"""The tag in which a prompt's text comes."""
PROMPT_FILE = "prompt.txt"
"""The one file of a prompt's version."""


def is_prompt(tags: Mapping[str, str]) -> bool:
    """Whether tags make a prompt of what has them."""
    return tags.get(IS_PROMPT, "").lower() == "true"

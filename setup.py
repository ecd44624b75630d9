"""What pyproject.toml cannot say: conf/ and docs/ travel inside of btp, and PyPI shows no relative link."""

import re
import tomllib
from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
TRAVELS = ("conf", "docs")
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def described(readme: str, repository: str | None) -> str:
    """The README with absolute links; where no repository is known, their text alone, without the pictures."""
    raw = repository and repository.replace("github.com", "raw.githubusercontent.com")

    def whole(link: re.Match[str]) -> str:
        picture, text, path = link.groups()
        if repository is None:
            return "" if picture else text
        return f"{picture}[{text}]({raw}/main/{path})" if picture else f"[{text}]({repository}/blob/main/{path})"

    return LINK.sub(whole, readme)


if __name__ == "__main__":
    project = tomllib.loads((HERE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    setup(
        packages=[
            *find_namespace_packages(include=["btp*", "hydra_plugins*"]),
            *(f"btp.{name}" for name in TRAVELS),
        ],
        package_dir={f"btp.{name}": name for name in TRAVELS},
        long_description=described(readme, project.get("urls", {}).get("Repository")),
        long_description_content_type="text/markdown",
    )

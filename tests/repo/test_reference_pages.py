"""The reference pages say what the code says: the tree of errors, their messages, the store's schema."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from secondpass import errors
from secondpass.store.format import FORMAT, SCHEMA, Progress


def page(root: Path, name: str) -> str:
    return (root / "docs" / "reference" / name).read_text("utf-8")


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


# ---------------------------------------------------------------- errors


def classes() -> list[str]:
    return [
        name
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, Exception)
    ]


def test_every_error_has_its_heading(root: Path) -> None:
    headings = set(re.findall(r"^#{2,3} (\w+)$", page(root, "errors.md"), re.MULTILINE))
    absent = [name for name in classes() if name not in headings and name != "SecondpassError"]
    assert not absent, f"docs/reference/errors.md has no heading for {absent}"


def test_the_tree_of_errors_is_that_of_the_module(root: Path) -> None:
    lines = (inspect.getdoc(errors) or "").splitlines()
    tree = "\n".join(
        line.strip() if line.strip() == "SecondpassError" else line.removeprefix("    ") for line in lines
    )
    (shown,) = fenced(page(root, "errors.md"), "text")
    assert shown.strip() in tree, "docs/reference/errors.md draws another tree than secondpass.errors"
    drawn = re.findall(r"^[│├└─ ]*(\w+)", shown, re.MULTILINE)
    assert sorted(drawn) == sorted(classes()), "the tree leaves out or invents a class"


def pieces_of(source: str) -> str:
    """All text that a module may say: its string constants, one after the other."""
    constants = [
        n.value
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Constant) and isinstance(n.value, str)
    ]
    return "\n".join(constants)


def test_every_message_shown_is_one_that_the_code_can_say(root: Path) -> None:
    said = "\n".join(pieces_of(p.read_text("utf-8")) for p in (root / "src" / "secondpass").rglob("*.py"))
    rows = re.findall(r"^\| (`[^|]*) \|", page(root, "errors.md"), re.MULTILINE)
    assert len(rows) > 30
    shown = [quoted for row in rows for quoted in re.findall(r"`([^`]+)`", row)]
    # The values of a message stand between its pieces: `...` here, a name or a number there.
    values = r"\.\.\.|write 0\.0|\bint\b|\bfloat\b|__init__|process"
    unsaid = [
        (quoted, part.strip())
        for quoted in shown
        for part in re.split(values, quoted)
        if len(part.strip(" ,;:.")) > 2 and part.strip(" ,;:.") not in said
    ]
    assert not unsaid, f"docs/reference/errors.md shows what no module says: {unsaid}"


# ---------------------------------------------------------------- the store's format


def test_the_schema_shown_is_the_one_used(root: Path) -> None:
    (shown,) = fenced(page(root, "store-format.md"), "sql")
    assert shown.strip() == SCHEMA.strip()


def test_the_format_page_names_every_table_and_every_field_of_progress(root: Path) -> None:
    text = page(root, "store-format.md")
    names = [*re.findall(r"CREATE TABLE (\w+)", SCHEMA), *Progress.__struct_fields__]
    absent = [name for name in names if f"`{name}`" not in text]
    assert not absent, f"docs/reference/store-format.md does not tell what these are: {absent}"


def test_the_format_page_tells_the_number_of_the_format(root: Path) -> None:
    assert f"format {FORMAT}" in page(root, "store-format.md")


# ---------------------------------------------------------------- the public names


def test_the_api_page_has_every_public_name(root: Path) -> None:
    import secondpass
    from secondpass import connectors, testing

    text = page(root, "api.md") + page(root, "connectors.md")
    names = [*secondpass.__all__, *connectors.__all__, *testing.__all__]
    absent = [name for name in names if not re.search(rf"(?m)(?:`[^`\n]*|^#+ .*)\b{name}\b", text)]
    assert not absent, f"docs/reference/api.md and connectors.md do not mention {absent}"


@pytest.mark.parametrize("name", ["options", "random", "count", "log", "now", "position", "setup", "name"])
def test_the_api_page_tells_what_every_task_has(root: Path, name: str) -> None:
    assert re.search(rf"`(self\.|\.)?{name}\b", page(root, "api.md"))


# ---------------------------------------------------------------- finding the pages


def test_the_start_page_and_the_site_lead_to_every_page(root: Path) -> None:
    docs = root / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {"index.md"}
    index, site = (docs / "index.md").read_text("utf-8"), (root / "mkdocs.yml").read_text("utf-8")
    assert not [name for name in sorted(pages) if f"({name})" not in index], "docs/index.md leaves pages out"
    assert not [name for name in sorted(pages) if f" {name}\n" not in site], "mkdocs.yml leaves pages out"

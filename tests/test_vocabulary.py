"""One word, one thing: terms of the field, and none that only this project ever used for them."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter

import pytest

from roadmap import ROOT

# What is not written (a pattern, case ignored), and what is written in its place.
BANNED = {
    r"made[ -]up": "synthetic",
    r"tells?|telling|told|says?|saying|said": "report, return, print, state",
    r"looks?|looked|looking": "inspect, poll, preflight check, read, search",
    r"by turns": "interleaved",
    r"turns?|turned|turning": "gradient accumulation step; convert, become, switch",
    r"middle half": "interquartile range (IQR)",
    r"share of (?:its |the )?peak": "% of peak FLOP/s",
    r"worth": "marginal effect: added to the base, along the path, left out of the final model",
    r"(?:left|leaves?|leaving|set|sets) aside|pass(?:es|ed)? over": "skipped",
    r"(?:goes|go|going|went) on|beg[aiu]ns? again": "resumes, is retried, continues",
    r"to be had": "available, unavailable",
    r"torn": "truncated",
    r"(?:is|are|be|was|were|or) whole": "intact",
    r"(?:leaf|leaves) (?:of|in) (?:the |a )?(?:recipe|config|roadmap|YAML)|dotted lea\w+": "key",
    r"moving averages?": "EMA",
    r"first process": "rank 0",
    r"workers? a core": "one worker per core",
    r"rehears\w+": "dry run",
    r"hand(?:s|ed|ing)? (?:it |them |this )?over": "submit, pass",
    r"is no measurement": "is not a benchmark",
    r"ways? out": "a suggested fix",
    r"would cost": "estimate",
    r"kept memory": "allocator settings",
    r"gr[ea]ys": "pixel values",
    r"nobody|somebody|whoever": "no process, no user; name the subject",
    r"anew": "again",
}
# names that files, JSON documents and Python have
ALLOWED = r'worth\.(?:md|csv|png)|"worth"|"said":|\.tell\(\)'
FILES = "|".join(
    (
        r"(roadmap|slurm|blocks|examples)/.+\.(py|ya?ml|js|css|j2|html)",
        r"tests/benchmark_\w+\.py",
        r"[a-z_]+\.(py|yaml)",
        r"README\.md|docs/.+\.md",
    )
)


def files() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split() if re.fullmatch(FILES, name)]


@pytest.mark.parametrize("pattern", BANNED)
def test_a_private_word_is_not_written(pattern: str) -> None:
    word = re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()}"
        for name in files()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if word.search(re.sub(ALLOWED, "", line))
    ]
    assert not found, f"write {BANNED[pattern]!r} in place of\n" + "\n".join(found)


def test_names_of_tests_have_no_private_word() -> None:
    word = re.compile(rf"\b(?:{'|'.join([*BANNED, 'whole'])})\b")
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in re.findall(r"def (test_\w+)", path.read_text())
        if word.search(name.replace("_", " "))
    ]
    assert not found, "name what holds in the field's words (see BANNED):\n" + "\n".join(found)


def test_no_two_classes_share_a_name() -> None:
    found = Counter(
        node.name
        for name in files()
        if name.endswith(".py") and not name.startswith("tests/")
        for node in ast.walk(ast.parse((ROOT / name).read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in found.items() if times > 1] == []

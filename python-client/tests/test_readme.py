"""What the README shows, run as it stands, but for the address of Redis."""

import re

import pytest

from conftest import PACKAGE

pytestmark = pytest.mark.usefixtures("worker")


def test_the_examples_of_the_readme_work(redis_url, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 6
    names = {}
    for example in examples:
        exec(compile(example.replace("redis://127.0.0.1:6379/0", redis_url), "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("Why is the sky blue?")
    assert "no-such-model" in printed

"""Files of requests. Pure."""

from __future__ import annotations

import random

import pytest

from loadtest.model import PlanError, RequestSpec
from loadtest.requestfile import parse
from loadtest.template import Template

BASE = RequestSpec("http://unused/", "POST", (("X-A", "1"), ("X-B", "1")), b"base")


def requests(text: str, url: str | None = "http://h:1/x") -> tuple[RequestSpec, ...]:
    return parse(text, name="FILE", base=BASE, url=url)


def test_urls_and_paths() -> None:
    found = requests("\ufeff# comment\n\nhttp://h:1/a?b=c\n  /d  \r\n/e#f\n")
    assert [spec.url for spec in found] == ["http://h:1/a?b=c", "http://h:1/d", "http://h:1/e#f"]
    assert all((spec.method, spec.headers, spec.body) == ("POST", BASE.headers, b"base") for spec in found)
    assert not any(spec.template for spec in found)


def test_json() -> None:
    every = '{"url": "http://h:1/a", "method": "put", "headers": {"x-a": "2", "X-C": ""}, "body": "é", "weight": 3}'
    first, second = requests(every + '\n{"path": "/b", "template": true, "body": "{{uuid}}"}')
    assert (first.url, first.method, first.body, first.weight) == ("http://h:1/a", "PUT", "é".encode(), 3)
    assert first.headers == (("x-a", "2"), ("X-C", ""), ("X-B", "1"))
    assert (second.url, second.method, second.template, second.weight) == ("http://h:1/b", "POST", True, 1)


def test_no_url_is_needed_where_there_are_no_paths() -> None:
    assert requests("http://h:1/a", None)[0].url == "http://h:1/a"


def test_templates() -> None:
    (plain,) = requests("/a/{{random:1:3}}?n={{seq}}")
    assert plain.template
    (not_one,) = requests('{"path": "/", "body": "{{mustache}}"}')
    assert not not_one.template


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("GET http://h:1/", "neither one URL"),
        ("ftp://h:1/", "http://"),
        ("{", "no JSON"),
        ("{}", "'url' or 'path'"),
        ('{"url": "http://h:1/", "path": "/"}', "'url' or 'path'"),
        ('{"url": 5}', "'url': must be text"),
        ('{"url": "nonsense"}', "'url': "),
        ('{"path": "a"}', "'path': 'a' must begin with a /"),
        ('{"path": "/", "verb": "PUT"}', "'verb' is unknown; known are url, path, method"),
        ('{"path": "/", "method": "P T"}', "'method': "),
        ('{"path": "/", "method": 1}', "'method': must be text"),
        ('{"path": "/", "headers": ["a"]}', "'headers': must be an object"),
        ('{"path": "/", "headers": {"a": 1}}', "'headers': must be text"),
        ('{"path": "/", "headers": {"a b": "1"}}', "'headers': 'a b'"),
        ('{"path": "/", "body": {"a": 1}}', "'body': must be text"),
        ('{"path": "/", "weight": 0}', "'weight': must be a whole number"),
        ('{"path": "/", "weight": 1.5}', "'weight': must be a whole number"),
        ('{"path": "/", "weight": true}', "'weight': must be a whole number"),
        ('{"path": "/", "template": "yes"}', "'template': must be true or false"),
        ('{"path": "/{{nothing}}", "template": true}', "'url': template: {{nothing}} is none of {{seq}}"),
        ('{"path": "/{{seq", "template": true}', "'url': template: a {{ is not closed"),
        ('{"path": "/", "body": "{{random:5:1}}", "template": true}', "'body': template: .*the lower bound"),
        ('{"path": "/", "headers": {"a": "{{x}}"}, "template": true}', "'headers', a: template"),
        ("http://{{seq}}/", "'url': only path and query"),
        ("/{{random:1}}", "'url': template"),
    ],
)
def test_errors_name_line_and_field(line: str, complaint: str) -> None:
    with pytest.raises(PlanError, match=f"^FILE, line 3: .*{complaint}"):
        requests(f"# one\n/ok\n{line}\n/ok")


def test_files_that_cannot_be_sent() -> None:
    for text, complaint in (
        ("# nothing\n\n", "no request"),
        ("http://a/\nhttp://b/", "one scheme, host and port, not to a:80 and b:80"),
    ):
        with pytest.raises(PlanError, match=complaint):
            requests(text)
    with pytest.raises(PlanError, match="line 1: '/a' is a path: give the URL"):
        requests("/a", None)


def test_places_are_filled() -> None:
    template = Template(b"a{{seq}}-{{random:-2:3}}-{{ uuid }}z", random.Random(1))
    filled = [template.fill(seq).decode() for seq in range(300)]
    assert len(set(filled)) == 300
    for seq, text in enumerate(filled):
        assert text.startswith(f"a{seq}-")
        assert text.endswith("z")
    numbers = {int(text.removeprefix(f"a{seq}-")[:-38]) for seq, text in enumerate(filled)}
    assert numbers == {-2, -1, 0, 1, 2, 3}
    again = Template(b"a{{seq}}-{{random:-2:3}}-{{ uuid }}z", random.Random(1))
    assert [again.fill(seq).decode() for seq in range(300)] == filled
    assert Template(b"no place", random.Random(1)).fixed
    assert not template.fixed

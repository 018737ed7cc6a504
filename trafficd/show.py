"""The API's answers as text for people, and a rollout as it happens."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trafficd.client import Client, Json

_REFRESH = 0.25  # s between looks at the service while a rollout is shown live
_COLORS = {"succeeded": "green", "reverted": "yellow", "failed": "red", "stuck": "red"}


def _console(**options: Any) -> Console:
    """Texts are shown as they are: "[fd00::1]" is an address, and no markup."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def _render(*parts: RenderableType) -> str:
    """What a terminal of any width, or a file, would show; colours only on a terminal."""
    console = _console(width=None if sys.stdout.isatty() else 160, force_terminal=sys.stdout.isatty())
    with console.capture() as capture:
        console.print(*parts, sep="\n")
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def listing(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table."""
    table = _table(*columns)
    for row in rows:
        table.add_row(*row)
    return _render(table)


def services(found: Sequence[Json]) -> str:
    """All services, a table each."""
    if not found:
        return "no services; add [services.NAME] to the configuration"
    return "\n\n".join(service(one) for one in found)


_VERDICTS = {"FAIL": "red", "PASS": "green", "HOLD": ""}


def service(view: Json) -> str:
    return _render(*_service_parts(view))


def _service_parts(view: Json) -> list[RenderableType]:
    title = Text(view["name"], style="bold")
    title.append(f"  stable {view['stable'] or 'unknown'}", style="not bold")
    if view["left"]:
        title.append("  LEFT: Caddy goes on with plain upstreams", style="magenta")
    if view["maintenance"] is not None:
        title.append(f"  MAINTENANCE: Caddy answers {view['maintenance']['reason']}".rstrip(), style="yellow")
    if view["held"]:
        title.append("  HELD: requests wait", style="yellow")
    title.append("".join(f"  {part}" for part in _parts_of_traffic(view)))
    if view["freeze"] is not None:
        title.append(f"  FROZEN {_freeze(view['freeze'])}", style="cyan")
    parts: list[RenderableType] = [title, _upstreams(view["upstreams"])]
    if view["panic"]:
        parts.append(Text(view["panic"], style="red"))
    parts += [Text(line, style="red") for line in view["trouble"]]
    if view["analysis"] is not None:
        found = view["analysis"]
        whose, style = ("canary", _VERDICTS[found["verdict"]]) if found["current"] else ("the last canary", "dim")
        parts.append(Text(f"  {whose} {found['verdict']}: {found['why']}", style=style))
    if view["rollout"] is not None and view["rollout"]["ended_at"] is None:
        parts.append(Text(_headline(view["rollout"])))
    parts += [Text(f"  waits for {_wait(wait)}") for wait in view["waits"]]
    if view["queued"] is not None:
        parts.append(Text(_headline(view["queued"])))
        parts += [Text(f"  waits for {_wait(wait)}") for wait in view["queued"]["waits"]]
    return parts


def _parts_of_traffic(view: Json) -> list[str]:
    """What goes to other versions than the stable one."""
    parts = [] if view["canary_percent"] is None else [f"canary {view['canary_percent']:g} %"]
    parts += [f"{version} {percent:g} %" for version, percent in view["shares"].items()]
    return parts + [f"pin {pin}: {version}" for pin, version in view["pins"].items()]


def _freeze(freeze: Json) -> str:
    by = f" by {freeze['actor']}" if freeze["actor"] else ""
    end = "until thawed"
    if freeze["until"] is not None:
        end = f"until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(freeze['until']))}"
    return f"{end}{by}: {freeze['reason']}"


def _upstreams(found: Sequence[Json]) -> Table:
    grouped = any(one["group"] for one in found)
    group = ["GROUP"] if grouped else []
    table = _table("UPSTREAM", *group, "VERSION", "DIAL", "READY", "SHARE", "IN FLIGHT", "HEALTH", "")
    for one in found:
        table.add_row(
            one["id"],
            *([one["group"] or ""] if grouped else []),
            one["version"] or "unknown",
            one["dial"] or "-",
            Text("yes", style="green") if one["ready"] else Text("no", style="yellow"),
            _share(one),
            _open(one),
            one["health"],
            one["reason"],
        )
        for other in one["beside"]:
            table.add_row(
                f"└ {one['id']}",
                *([""] if grouped else []),
                other["version"],
                other["dial"],
                "",
                f"{other['share']:g} %",
                "unknown" if other["in_flight"] is None else str(other["in_flight"]),
                other["health"],
                _beside(other),
            )
    return table


def _beside(view: Json) -> str:
    if view["retiring"]:
        return "is being retired"
    if view["keep_until"] is None:
        return ""
    return f"warm until {time.strftime('%H:%M:%S', time.localtime(view['keep_until']))}: `trafficd rollback` is instant"


def _share(view: Json) -> str:
    return "-" if view["share"] is None else f"{view['share']:g} %"


def _open(view: Json) -> str:
    if view["dial"] is None:
        return "-"
    return "unknown" if view["in_flight"] is None else str(view["in_flight"])


def upstream(view: Json) -> str:
    state = "ready" if view["ready"] else f"not ready ({view['reason'] or view['health']})"
    version = view["version"] or "version unknown"
    if view["dial"] is None:
        return f"{view['id']} ({version}) is {state}"
    return f"{view['id']} ({view['dial']}, {version}) is {state}, {_share(view)}"


def drained(name: str, report: Json) -> str:
    cut = report["cut"]
    if report["drained"] and report["in_flight"] is None:
        return f"{name} does not count as ready any more; it is a worker, and nobody calls it"
    if report["drained"]:
        return f"{name} is drained: nothing is open on it"
    count = "an unknown number" if report["in_flight"] is None else report["in_flight"]
    cut_text = f" (cut now: {cut['requests']} requests, {cut['streams']} streams)" if any(cut.values()) else ""
    return f"{name} gets no new requests; still open on it: {count}{cut_text}"


def _wait(wait: Json) -> str:
    times = []
    if wait["expected"] is not None:
        times.append(f"about {wait['expected']:g} s")
    if wait["at_most"] is not None:
        times.append(f"at most {wait['at_most']:g} s")
    return str(wait["what"]) + (f" ({', '.join(times)})" if times else "")


# -- rollouts ----------------------------------------------------------------------------------------------


def _headline(view: Json) -> str:
    what = f"{view['id']}: {view['service']} to {view['version']}"
    if view["ended_at"] is not None:
        return f"{what} {view['state']} after {view['seconds']:.1f} s"
    paused = ", paused" if view["paused"] else ""
    stages = view["stages"]
    step = "" if view["stage"] is None else f", step {view['stage'] + 1} of {len(stages)}"
    return f"{what} is {view['state']}{paused}{step}, for {view['seconds']:.1f} s now"


def rollout(view: Json) -> str:
    lines = [_headline(view)]
    if view["reason"]:
        lines.append(f"  {view['reason']}")
    lines += [f"  warning: {text}" for text in view["warnings"] if text not in view["reason"]]
    if view.get("warning"):
        lines.append(f"  warning: {view['warning']}")
    lines += [f"  {_cut(step)}" for step in view["steps"] if step["cut"] and any(step["cut"].values())]
    for step in view["steps"]:
        if step["ok"] is False and step["output"]:
            lines.append(f"  output of {step['step']} {step['upstream'] or ''}:")
            lines += [f"    {_harmless(line)}" for line in step["output"].splitlines()[-10:]]
    lines += [f"  waits for {_wait(wait)}" for wait in view["waits"]]
    return "\n".join(lines)


def _harmless(line: str) -> str:
    """A line that a program wrote, which may repeat what a stranger sent it, without what a terminal would obey."""
    return "".join(one if one.isprintable() else " " for one in line)


def _cut(step: Json) -> str:
    cut = step["cut"]
    return (
        f"{step['upstream']}: {cut['requests']} requests and {cut['streams']} streams were still open at drain_timeout"
    )


def rollouts(found: Iterable[Json]) -> str:
    table = _table("ROLLOUT", "SERVICE", "VERSION", "STATE", "BEGAN", "SECONDS", "BY", "")
    for one in found:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["started_at"]))
        state = Text(one["state"], style=_COLORS.get(one["state"], ""))
        note = one["reason"] or one["message"]
        table.add_row(
            one["id"], one["service"], one["version"], state, began, f"{one['seconds']:.1f}", one["actor"], note
        )
    return _render(table)


def events(found: Iterable[Json]) -> str:
    table = _table("SEQ", "AT", "SERVICE", "EVENT", "")
    for one in found:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one["at"]))
        table.add_row(str(one["seq"]), at, one["service"], one["type"], _details(one["data"]))
    return _render(table)


def _details(data: Json) -> str:
    plain = {k: v for k, v in data.items() if isinstance(v, str | int | float | bool) and v not in ("", False)}
    return " ".join(f"{key}={value}" for key, value in plain.items() if key not in ("output", "key"))[:200]


def event_line(event: Json) -> str | None:
    """One line of a rollout's progress; None for what a reader need not see."""
    data = event["data"]
    where = f" {data['upstream']}" if data.get("upstream") else ""
    back = " (bringing the old version back)" if data.get("direction") == "revert" else ""
    match event["type"]:
        case "rollout_queued":
            return f"{event['rollout']} is pending: {event['service']} to {data['version']}, {data['strategy']}"
        case "superseded":
            return f"stops where it stands: {data['by']} takes over"
        case "rollout_started":
            return f"{event['rollout']} begins: {event['service']} to {data['version']}, {data['strategy']}"
        case "step_started":
            return f"{data['step']}{where}{back}"
        case "step_ended" if not data["ok"]:
            return f"{data['step']}{where} FAILED: {data['reason']}"
        case "step_ended":
            cut = data.get("cut") or {}
            told = f"{data['step']}{where}: cut {cut['requests']} requests, {cut['streams']} streams" if cut else ""
            return told if any(cut.values()) else None
        case "task_started":
            return None
        case "rollout_ended":
            return f"{data['state']}" + (f": {data['reason']}" if data["reason"] else "")
        case "stage_started":
            return f"{data['percent']:g} % of the traffic"
        case other:
            said = {"abort_requested": "aborted", "gate_passed": "goes on at its gate", "promoted": "gets all traffic"}
            by = f" by {data['actor']}" if data.get("actor") else ""
            why = f": {data['reason']}" if data.get("reason") else ""
            return f"{said.get(other, other.replace('_', ' '))}{where}{by}{why}"


def follow(client: Client, begun: Json, *, live: bool) -> Json:
    """Show a rollout until it has ended; its last state."""
    path = f"/v1/rollouts/{begun['id']}"
    if live and sys.stdout.isatty():
        _follow_live(client, begun)
    else:
        for event in client.events(begun["id"]):
            line = event_line(event)
            if live and line is not None:
                stamp = time.strftime("%H:%M:%S", time.localtime(event["at"]))
                print(f"{stamp} {line}", flush=True)
    return client.call("GET", path)


def _follow_live(client: Client, begun: Json) -> None:
    console = _console()
    with Live(console=console, refresh_per_second=8, transient=True) as display:
        while True:
            view = client.call("GET", f"/v1/services/{begun['service']}")
            ours = [one for one in (view["rollout"], view["queued"]) if one is not None and one["id"] == begun["id"]]
            if not ours or ours[0]["ended_at"] is not None:
                return
            display.update(Group(*_service_parts(view), _progress(ours[0])))
            time.sleep(_REFRESH)


def _progress(view: Json) -> Table:
    table = _table("", "")
    for name, state in view["upstreams"].items():
        mark = {"done": "✔", "waiting": "·", "reverted": "↩"}.get(state, "✘" if state.startswith("failed") else "▶")
        table.add_row(f"{mark} {name}", state)
    return table


# -- Caddy's configuration ---------------------------------------------------------------------------------


def plan(view: Json) -> str:
    """What would be written, and what each service should know of it."""
    lines = []
    for one in view["services"]:
        state = "there already" if one["present"] else "to be written"
        if one["refused"]:
            state = "cannot be done"
        elif one["route"] == "import":
            state = "imported" if one["present"] else "not imported yet"
        lines.append(f"{one['service']} (route {one['route']}, control {one['control']}): {state}")
        lines += [f"  - {note}" for note in one["notes"]]
        lines += [f"  {line}" for line in (one["refused"] or "").splitlines()]
        lines.append(f"  {one['cost']}")
        lines += [f"  {line}" for line in _forecast(one.get("forecast"))]
    lines.append("")
    if view["difference"]:
        lines.append(f"The write, to {view['admin']}:")
        lines += [f"  {line}" for line in view["difference"]]
    lines.append(view["cost"])
    return "\n".join(lines)


def _forecast(view: Json | None) -> list[str]:
    """How soon a canary would be judged."""
    if view is None:
        return []
    traffic, lines = view["traffic"], []
    if traffic is not None:
        lines.append(
            f"{traffic['rate']:.3g} requests/s in the last {_time(traffic['seconds'])}, {traffic['stable_bad']} of "
            f"{traffic['stable_requests']} bad, from {traffic['clients']} clients"
        )
    if view["why"] is not None:
        return [*lines, f"canary: {view['why']}"]
    worse = f"{100 * view['worse_bad']:.3g} % BAD FAILS"
    rows = [
        (f"{one['percent']:g} %", *(_about(one[key]) for key in ("fail_worse", "fail_broken", "pass_good")))
        for one in view["shares"]
    ]
    lines += listing(("CANARY", worse, "ALL BAD FAILS", "GOOD PASSES"), rows).splitlines()
    wanted = _time(view["within"])
    if view["suggested"] is None:
        lines.append(f"too little traffic for a verdict within {wanted}, with half of it too")
    else:
        lines.append(f"for a verdict within {wanted}: trafficd canary {view['service']} {view['suggested']:g}")
    return lines + [f"- {note}" for note in view["notes"]]


def _about(seconds: float | None) -> str:
    return "not within a year" if seconds is None else f"about {_time(seconds)}"


def _time(seconds: float) -> str:
    """Two digits of it: nobody knows more of the future."""
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    return f"{max(seconds, 1.0):.2g} s"

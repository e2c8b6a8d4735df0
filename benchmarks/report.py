"""Fill the figures of docs/*.md from the latest JSON files: `report.py [--check] [--plots]`.

A page says where: between `<!-- figures: NAME -->` and `<!-- end of figures -->`. `--check` writes nothing and fails
where a page differs; `--plots` draws docs/images/performance_*.png too.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common import latest_results

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
NOT_MEASURED = "Not measured yet.\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plots", action="store_true")
    arguments = parser.parse_args()
    stale = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        filled = fill(text)
        if filled != text:
            stale.append(page.name)
            if not arguments.check:
                page.write_text(filled, encoding="utf-8")
    if arguments.check and stale:
        raise SystemExit(f"figures differ from the JSON files in {', '.join(stale)}; run benchmarks/report.py")
    if arguments.plots:
        from plots import plot_memory, plot_time

        plot_memory(read("memory_*.json"), DOCS / "images" / "performance_memory.png")
        plot_time(read("vggt_cuda_*.json"), DOCS / "images" / "performance_time.png")


def fill(text: str) -> str:
    """The page with its figures as they are in the JSON files."""
    return BLOCK.sub(lambda found: found[1] + MAKERS[found[2]]() + found[3], text)


def read(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in latest_results(pattern)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines) + "\n"


def describe(record: dict[str, Any]) -> str:
    machine, code = record["machine"], record["code"]
    where = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    return f"{where}; torch {code['torch']}, commit {code['commit'][:7]}, {record['date']}"


def make_memory() -> str:
    """Peaks by number of views, and the line through them."""
    text = ""
    for record in read("memory_*.json"):
        settings, results = record["settings"], record["results"]
        height, width = settings["size"]
        views = sorted({int(key.split()[0]) for found in results.values() for key in found if key.endswith("views")})
        rows = []
        for plan, found in results.items():
            peaks = [found.get(f"{count} views", {}).get("peak_gib", "") for count in views]
            law = found.get("law", {})
            line = f"{law['intercept_gib']:.2f} + {law['slope_mib_a_view']:.1f} MiB a view" if law else ""
            host = found.get(f"{views[-1]} views", {}).get("host_gib", "")
            rows.append([plan, *peaks, line, host])
        text += f"{height} × {width}, {', '.join(settings['heads'])}, {settings['dtype']}:\n\n"
        head = ["plan", *(f"{count} views, GiB" for count in views), "law, GiB", f"host at {views[-1]} views, GiB"]
        text += table(head, rows)
    return text or NOT_MEASURED


def make_exactness() -> str:
    text = ""
    for record in read("exactness_*.json"):
        settings = record["settings"]
        scenes, views, _, height, width = settings["images"]
        kind = "rooms" if settings["rooms"] else "noise"
        text += f"Weights: {settings['weights']}; {scenes} scenes of {views} views of {height} × {width}, {kind}\n"
        text += f"({describe(record)}):\n\n"
        rows = [
            [mode, f"{found['rotation_deg']:.1e}", f"{found['translation']:.1e}", f"{found['depth']:.1e}",
             "identical" if found["identical"] else "yes" if found["within_gates"] else "no"]
            for mode, found in record["results"].items()
        ]  # fmt: skip
        text += table(["mode", "rotation, degrees", "translation", "depth", "within the gates"], rows)
    return text or NOT_MEASURED


def make_time() -> str:
    text = ""
    for record in read("vggt_*.json"):
        settings = record["settings"]
        height, width = settings["size"]
        text += f"{settings['views']} views of {height} × {width}, {settings['dtype']} ({describe(record)}):\n\n"
        rows = []
        for name, found in record["results"].items():
            if "failed" in found:
                rows.append([name, found["failed"], "", "", ""])
                continue
            peak = next(value for key, value in found.items() if key.startswith("peak"))
            ratio = next((value for key, value in found.items() if key.startswith("times_of")), "")
            spread = f"{1000 * found['min_s']:,.0f} … {1000 * found['max_s']:,.0f}"
            rows.append([name, f"{1000 * found['median_s']:,.1f}", spread, ratio, peak])
        first = next(iter(record["results"]))
        text += table(["", "median, ms", "range, ms", f"times of {first}", "peak, GiB"], rows)
    return text or NOT_MEASURED


def make_small() -> str:
    """Before and now, where there is little to do."""
    rows = []
    for record in read("small_*.json"):
        settings, found = record["settings"], record["results"]
        now, before = found["plain"], found["before"]
        times = [f"{1000 * side['median_s']:,.1f}" for side in (before, now)]
        ratios = [a / b for a, b in zip(now["seconds"], before["seconds"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append([settings["views"], *times, f"{middle:.3f}", f"{low:.2f} … {high:.2f}", len(ratios)])
    if not rows:
        return NOT_MEASURED
    height, width = settings["size"]
    text = f"{settings['weights']}, {height} × {width}, {settings['dtype']}, before = commit {settings['before'][:7]} "
    head = ["views", "before, ms", "now, ms", "now / before, median", "middle half", "rounds"]
    return text + f"({describe(record)}):\n\n" + table(head, rows)


def make_ablations() -> str:
    records = read("ablations.json")
    if not records:
        return NOT_MEASURED
    columns = {
        "auc_30": "AUC@30, %", "rra_15": "rotation within 15°, %", "depth_abs_rel": "depth AbsRel",
        "depth_delta": "δ < 1.25, %", "unprojected_overall": "points from depth and cameras",
        "head_overall": "point head", "track_delta": "tracks δ, %",
    }  # fmt: skip
    rows = []
    for arm, found in records[0]["results"].items():
        cells = [format_error(found.get(name), 100 if label.endswith("%") else 1) for name, label in columns.items()]
        rows.append([arm.replace("_", " "), *cells])
    return table(["", *columns.values()], rows)


def make_long() -> str:
    """What each approximation changes, scene by scene, and what it saves."""
    columns = {"auc_30": "AUC@30, points", "auc_5": "AUC@5, points", "depth_delta": "δ < 1.25, points",
               "unprojected_overall": "points from depth and cameras"}  # fmt: skip
    text = ""
    accuracy = [(record, *item) for record in read("long_accuracy_*.json") for item in record["results"].items()]
    for record, views, modes in accuracy:
        text += f"nano, {views}, {record['settings']['scenes']} rooms, differences to the exact pass "
        text += f"({describe(record)}):\n\n"
        rows = []
        for name, found in modes.items():
            change = found["mean"] if name == "exact" else found["minus_exact"]
            cells = [format_error(change[key], 1 if key == "unprojected_overall" else 100) for key in columns]
            rows.append([name, *cells])
        text += table(["", *columns.values()], rows)
    times = [(record, *item) for record in read("long_time*.json") for item in record["results"].items()]
    for record, views, modes in times:
        rows = [[name, f"{1000 * found['median_s']:,.0f}", found["over_exact"]] for name, found in modes.items()]
        model = record["settings"]["preset"] or record["settings"]["weights"]
        text += f"Time, {model}, {views} ({describe(record)}):\n\n" + table(["", "median, ms", "of exact"], rows)
    return text or NOT_MEASURED


def make_shared_taps() -> str:
    records = read("shared_taps.json")
    if not records:
        return NOT_MEASURED
    (record,) = records
    rows = []
    for views, found in record["results"]["views"].items():
        for way, work in found["work"].items():
            ratio = found["seconds"]["together_over_apart"] if way == "together" else 1.0
            rows.append([f"{way}, {views}", work["operations"], work["moved_mib"], work["made_mib"], ratio])
    errors = ", ".join(f"{way} {found['bfloat16']:.2e}" for way, found in record["results"]["error"].items())
    head = ["and number of views", "operations", "read and written, MiB", "made, MiB", "time on a CPU, float32"]
    return f"Error in bfloat16: {errors} ({describe(record)}):\n\n" + table(head, rows)


def make_quantised() -> str:
    text = ""
    for record in read("quantise_*.json"):
        settings, results = record["settings"], record["results"]
        own, less = results["weight_bytes"].values()
        text += f"{settings['weights']}, {settings['dtype']} to {settings['kind']} ({describe(record)}): "
        text += f"{own / 2**20:.1f} to {less / 2**20:.1f} MiB of weights.\n\n"
        rows = [
            [f"random images, {name.replace('_', ' ')}: median, largest", "", " … ".join(f"{v:.2g}" for v in values)]
            for name, values in results["random_images"].items()
        ]
        for name, value in results.get("rooms", {}).get("own", {}).items():
            other = results["rooms"][settings["kind"]][name]
            rows.append([f"rooms, {name.replace('_', ' ')}", format_error(value, 1), format_error(other, 1)])
        text += table(["", "own", settings["kind"]], rows)
    return text or NOT_MEASURED


def make_nvs() -> str:
    """Pictures from new places, and what became of the tasks that the model could do before."""
    text = ""
    for record in read("nvs.json"):
        settings, results = record["settings"], record["results"]
        height, width = settings["image_hw"]
        text += f"{settings['scenes']} held-out rooms of {height} × {width} pixels, {settings['inputs']} pictures in, "
        text += f"{settings['targets']} out; {max(settings['steps'].values()):,} steps ({describe(record)}):\n\n"
        shown = {name: found["pictures"] for name, found in results.items() if "pictures" in found}
        rows = [
            [name.replace("_", " "), f"{found['psnr'][0]:.2f} ± {found['psnr'][1]:.2f}", format_error(found["ssim"], 1)]
            for name, found in shown.items()
        ]
        text += table(["", "PSNR, dB", "SSIM"], rows)
        text += make_tasks({name: found["tasks"] for name, found in results.items() if "tasks" in found})
    return text or NOT_MEASURED


def make_video_tracking() -> str:
    """Tracks in video, and what became of the tasks that the model could do before."""
    text = ""
    for record in read("video_tracking.json"):
        settings, results = record["settings"], record["results"]
        height, width = settings["image_hw"]
        text += f"{settings['videos']} held-out videos of {settings['frames']} frames, {height} × {width} pixels; "
        text += f"{max(settings['steps'].values()):,} steps ({describe(record)}):\n\n"
        modes = ("first", "strided")
        names = {"aj": "AJ", "delta": "δ", "oa": "OA"}
        head = ["", *(f"{label}, {mode}" for mode in modes for label in names.values())]
        rows = [
            [name, *(format_error(found[mode][key], 100) for mode in modes for key in names)]
            for name, found in results["tracking"].items()
        ]
        text += table(head, rows) + make_tasks(results["original"])
    return text or NOT_MEASURED


def make_tasks(results: dict[str, Any]) -> str:
    """The first row as it is, the others as differences to it."""
    columns = {
        "auc_30": "AUC@30, points", "depth_delta": "δ < 1.25, points", "depth_abs_rel": "depth AbsRel, points",
        "head_overall": "point head", "track_jaccard": "tracks AJ, points", "track_delta": "tracks δ, points",
    }  # fmt: skip
    rows = []
    for index, (name, found) in enumerate(results.items()):
        values = found["minus_before" if index else "mean"]
        cells = [format_error(values[key], 100 if label.endswith("points") else 1) for key, label in columns.items()]
        rows.append([f"{name} minus before" if index else f"{name}, before", *cells])
    return table(["the original tasks", *columns.values()], rows)


def make_attention() -> str:
    text = ""
    for record in read("attention_*.json"):
        names = sorted({name for found in record["results"] for name in found["ms"]})
        settings = record["settings"]
        text += f"Milliseconds, {settings['dtype']}, {settings['heads']} heads ({describe(record)}):\n\n"
        rows = [
            [f"{found['head_dim']} × {found['tokens']:,}", *(found["ms"].get(name, "") for name in names)]
            for found in record["results"]
        ]
        text += table(["head dimension × tokens", *names], rows)
    return text or NOT_MEASURED


def format_error(value: Sequence[float] | None, factor: int) -> str:
    if value is None:
        return ""
    digits = 1 if factor == 100 else 3
    return f"{factor * value[0]:.{digits}f} ± {factor * value[1]:.{digits}f}"


MAKERS: dict[str, Callable[[], str]] = {
    "memory": make_memory,
    "exactness": make_exactness,
    "time": make_time,
    "small": make_small,
    "shared_taps": make_shared_taps,
    "ablations": make_ablations,
    "long": make_long,
    "quantised": make_quantised,
    "attention": make_attention,
    "nvs": make_nvs,
    "video_tracking": make_video_tracking,
}

if __name__ == "__main__":
    main()

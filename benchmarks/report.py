"""Fill the figures of docs/*.md from the latest JSON files: `report.py [--check] [--plots]`.

A page says where: between `<!-- figures: NAME -->` and `<!-- end of figures -->`. `--check` writes nothing and fails
where a page differs; `--plots` draws docs/images/performance_*.png too.
"""

from __future__ import annotations

import argparse
import json
import re
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

        plot_memory(memory_records("VGGT"), DOCS / "images" / "performance_memory.png")
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
    changed = " with changes" if code.get("modified") else ""
    return f"{where}; torch {code['torch']}, commit {code['commit'][:7]}{changed}, {record['date']}"


def memory_records(family: str) -> list[dict[str, Any]]:
    """Counts of the models whose names begin so; records of before there was a name are VGGT-1B's."""
    records = [each for each in read("memory_*.json") if each["settings"].get("model", "VGGT-1B").startswith(family)]
    # Small ones first; those of one model stay in the order of their files.
    return sorted(records, key=lambda each: next(iter(each["results"]["plain"].values()))["weights_gib"])


def make_memory() -> str:
    return describe_memory("VGGT")


def make_memory_da3() -> str:
    return describe_memory("DA3")


def make_memory_omega() -> str:
    return describe_memory("Omega")


def make_memory_pi3() -> str:
    return describe_memory("Pi3")


def describe_memory(family: str) -> str:
    """Peaks by number of views, and the line through the two largest of them."""
    text = ""
    for record in memory_records(family):
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
        model = f"{settings['model']}, " if "model" in settings else ""
        text += f"{model}{height} × {width}, {', '.join(settings['heads'])}, {settings['dtype']}:\n\n"
        head = ["plan", *(f"{count} views, GiB" for count in views), "law, GiB", f"host at {views[-1]} views, GiB"]
        text += table(head, rows)
    return text or NOT_MEASURED


def make_views() -> str:
    """What a scene of so many views takes, on the GPU and in the host's memory, in every way to run it."""
    head = ["images", "views", "in one pass: GPU, GiB"]
    plans = {"offloaded": "parts", "low": "smallest parts"}
    head += [f"in {name}: {where}, GiB" for name in plans.values() for where in ("GPU", "host")]
    rows = []
    for record in memory_records("VGGT"):
        settings, results = record["settings"], record["results"]
        if "depth" not in settings["heads"]:
            continue
        height, width = settings["size"]
        counts = sorted(int(key.split()[0]) for key in results["plain"] if key.endswith("views"))
        for count in counts:
            found = {plan: results[plan][f"{count} views"] for plan in ("plain", *plans)}
            cells = [f"{found[plan][key]:.1f}" for plan in plans for key in ("peak_gib", "host_gib")]
            rows.append([f"{height} × {width}", count, f"{found['plain']['peak_gib']:.1f}", *cells])
    return table(head, rows) if rows else NOT_MEASURED


def make_time() -> str:
    """Seconds of a pass and the peak of the process or of the GPU's allocator; the plain candidate of each record."""
    names = {"vggt": "VGGT-1B", "small": "nano"}
    records = [record for name in names for record in read(f"{name}_*.json")]
    rows = []
    for record in records:
        settings, found = record["settings"], record["results"]["plain"]
        height, width = settings["size"]
        peak = next(value for key, value in found.items() if key.startswith("peak"))
        model = names[record["benchmark"].partition("_")[0]]
        images = f"{settings['views']} of {height} × {width}"
        spread = f"{found['min_s']:.2f} … {found['max_s']:.2f}"
        device = record["machine"]["gpu"] or f"CPU, {settings['threads']} threads"
        rows.append([model, images, settings["dtype"], device, f"{found['median_s']:.2f}", spread, f"{peak:.1f}"])
    if not rows:
        return NOT_MEASURED
    head = ["model", "images", "precision", "device", "seconds, median", "seconds, range", "peak, GiB"]
    machines = sorted({describe(record) for record in records})
    text = table(head, rows) + "Measured on: " + "; ".join(machines) + ".\n"
    gpu = any(record["machine"]["gpu"] for record in records)
    return text + ("\n" if gpu else "No time on a GPU has been measured yet.\n\n")


def make_load() -> str:
    records = read("load.json")
    if not records:
        return NOT_MEASURED
    found = records[0]["results"]
    return (
        f"Loading the {found['file_gib']:.1f} GiB of VGGT-1B's float32 weights from a file takes "
        f"{found['peak_resident_gib']:.1f} GiB of the host's memory\n({describe(records[0])}).\n\n"
    )


def make_nano() -> str:
    """Nano beside its opponents, on rooms of the kind that it was trained on."""
    records = read("nano.json")
    if not records:
        return NOT_MEASURED
    methods = {"model": "nano", "constant": "best constant guess", "opencv": "SIFT, same images",
               "opencv_enlarged": "SIFT, images 4× larger"}  # fmt: skip
    measures = {
        "auc_30": "pose AUC@30, %", "rra_15": "rotation within 15°, %", "rta_15": "translation direction within 15°, %",
        "ate": "ATE", "depth_abs_rel": "depth AbsRel", "depth_delta": "depth δ < 1.25, %",
        "head_overall": "points of the point head, overall",
        "unprojected_overall": "points from depth and cameras, overall",
        "track_jaccard": "tracks AJ, %", "track_delta": "tracks δ, %", "track_visibility": "tracks OA, %",
    }  # fmt: skip
    text = ""
    for views, found in records[0]["results"]["recipe"].items():
        rows = [
            [label, *(format_mean(found[method].get(name), label.endswith("%")) for method in methods)]
            for name, label in measures.items()
            if name in found["model"]
        ]
        text += f"**{views}**\n\n" + table(["measure", *methods.values()], rows)
    return text


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
    """Novel views, and what became of the tasks that the model could do before."""
    text = ""
    for record in read("nvs.json"):
        settings, results = record["settings"], record["results"]
        height, width = settings["image_hw"]
        first, last = settings["held_out_scenes"]
        text += (
            f"Held-out rooms {first:,} to {last:,}, {height} × {width} pixels, {settings['inputs']} input views and "
        )
        text += (
            f"{settings['targets']} target views; {max(settings['steps'].values()):,} steps ({describe(record)}):\n\n"
        )
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


def make_moving_things() -> str:
    """Poses and masks with and without the terms of videos."""
    text = ""
    for record in read("moving_things.json"):
        settings, results = record["settings"], record["results"]
        height, width = settings["image_hw"]
        text += (
            f"{settings['rooms']} videos of {settings['frames']} frames, {height} × {width} pixels, "
            f"{settings['pairs']} pairs ({describe(record)}).\n\n"
        )
        rows = []
        for name, found in results.items():
            if "," in name:
                cells = [found.get(key) for key in ("auc_5", "median_degrees", "iou")]
                rows.append([name, *("" if cell is None else f"{cell[0]:.2f} ± {cell[1]:.2f}" for cell in cells)])
        text += table(["", "AUC@5", "median pose error, degrees", "moving pixels, IoU"], rows)
        shares = {key: f"{100 * value[0]:.2f} %" for key, value in results["nothing moves"].items()}
        text += (
            f"Where nothing moves, {shares['of pairs']} of the pixels are taken to move by the cameras of pairs, and "
            f"{shares['after']} after alignment.\n\n"
        )
    return text or NOT_MEASURED


def make_video() -> str:
    """Rendered videos through the commands."""
    text = ""
    for record in read("video.json"):
        settings, found = record["settings"], record["results"]
        height, width = settings["frame_hw"]
        text += f"{settings['videos']} videos of {settings['frames']} frames, {height} × {width} pixels, "
        text += f"{settings['fps']} a second ({describe(record)}). "
        worst = max(found["time_error_s"][0], found["frame_time_error_s"][0])
        text += f"Times of frames are off by {1000 * worst:.1f} ms at most.\n\n"
        views = f"{settings['views']} views"
        rows = [
            [name, format_error(found[f"auc_30_{key}"], 100), format_error(found[f"depth_abs_rel_{key}"], 100)]
            for name, key in (("the video", "video"), ("its frames without loss", "photos"))
        ]
        text += table([views, "AUC@30, points", "depth AbsRel, points"], rows)
        close = f"within {settings['close_px']:g} px, %"
        rows = [
            [name, *(format_error(found[f"{key}_{name}"], factor) for key, factor in _OF_TRACKS.items())]
            for name in ("nano", "still")
        ]
        text += table(["tracks from the first frame", "median error, px", close, "visibility right, %"], rows)
    return text or NOT_MEASURED


_OF_TRACKS = {"median_px": 1, "close": 100, "visibility": 100}


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


def format_mean(value: Sequence[float] | None, percent: bool) -> str:
    if value is None:
        return "–"
    return f"{100 * value[0]:.1f}" if percent else f"{value[0]:.3f}"


def format_error(value: Sequence[float] | None, factor: int) -> str:
    if value is None:
        return ""
    digits = 1 if factor == 100 else 3
    return f"{factor * value[0]:.{digits}f} ± {factor * value[1]:.{digits}f}"


def make_bundle() -> str:
    """Solvers of bundle adjustment, with the time that each solve of theirs took."""
    text = ""
    for size, pattern in (("20 views", "solver"), ("60 views", "large")):
        for record in read(f"bundle_adjustment_{pattern}.json"):
            settings = record["settings"]
            rows = [
                [name, f"{found['final_cost']:.4f}", "+".join(map(str, found["steps"])), f"{found['median_s']:.3f}"]
                for name, found in record["results"].items()
                if "steps" in found
            ]
            points, observations = (f"{settings[name]:,}" for name in ("num_points", "observations"))
            text += f"**{size}, {points} points, {observations} observations** ({describe(record)}; one thread)\n\n"
            text += table(["solver", "final cost", "steps (accepted + rejected)", "median seconds"], rows)
            alone = record["results"].get("geomtx, in a process of its own")
            if alone is not None:
                peak = f"{alone['peak_resident_gib']:.2f} GiB"
                text += (
                    f"In a process of its own, geomtx's peak of memory is {peak}, torch and the problem included.\n\n"
                )
    for record in read("bundle_adjustment_training.json"):
        settings, ratio = record["settings"], record["results"]["ratio of the medians"]
        text += (
            f"A training step of nano's recipe with {settings['views']} views takes {ratio:.2f} times as long with "
            f"{settings['solver_steps']} steps of the solver on {settings['points']} points of each scene.\n\n"
        )
    return text or NOT_MEASURED


def make_refine() -> str:
    """Poses before and after a refinement, by what the correspondences come from."""
    text = ""
    starts = {
        "nano": "what nano predicts",
        "disturbed truth": "the truth, disturbed",
        "turned truth": "the truth, turned by 20 degrees",
    }
    for record in read("refine_*.json"):
        settings = record["settings"]
        height, width = settings["image_hw"]
        text += f"{settings['scenes']} rooms, {settings['views']} photos of {width}x{height} ({describe(record)})\n\n"
        for start, found in record["results"].items():
            rows = [
                [
                    name, *(f"{100 * row[each]:.1f}" for each in ("auc_5", "auc_30")), f"{row['reprojection_px']:.2f}",
                    *(("", "") if name == "before" else (f"{100 * row['refined']:.0f}", f"{row['seconds']:.1f}")),
                ]
                for name, row in found.items()
            ]  # fmt: skip
            head = ["correspondences, solver", "AUC@5, %", "AUC@30, %", "reprojection, px", "refined, %", "seconds"]
            text += f"Start: {starts[start]}\n\n" + table(head, rows)
    return text or NOT_MEASURED


def make_report_page() -> str:
    """Size and times of report.html by the number of photos."""
    text = ""
    for record in read("report_page.json"):
        rows = [
            [name, found["megabytes"], found["write_seconds"], found["write_cpu_seconds"], found["first_frame_seconds"]]
            for name, found in record["results"].items()
        ]
        text += (
            table(["", "MB", "seconds to write", "of the processor", "seconds to the first frame"], rows)
            + f"{describe(record)}.\n"
        )
    return text or NOT_MEASURED


def make_photos() -> str:
    """Seconds and memory of whole networks on photos, by the model and the number of views."""
    text = ""
    for record in read("photos.json"):
        rows = [
            [f"{name.partition('/')[2]}, {case}", found["command_s"], found["command_peak_gib"],
             found.get("pass_s", ""), found.get("gflop", ""),
             f"{100 * found['share_of_matrix_rate']:.0f} %" if "pass_s" in found else ""]
            for name, cases in record["results"].items()
            for case, found in cases.items()
        ]  # fmt: skip
        sizes = {
            "x".join(map(str, each["image_hw"][::-1]))
            for cases in record["results"].values()
            for each in cases.values()
            if "image_hw" in each
        }
        head = ["", "command, s", "its memory, GiB", "forward pass, s", "GFLOP", "share of the rate of matrix products"]
        threads = record["settings"]["threads"]
        text += (
            table(head, rows)
            + f"Images of {', '.join(sorted(sizes))}, {threads} thread{'s' * (threads > 1)}; {describe(record)}.\n"
        )
    return text or NOT_MEASURED


def make_pixel_shuffle() -> str:
    """The pixel-shuffle head against the DPT head: accuracy over seeds, time and memory in turns."""
    text = ""
    for record in read("pixel_shuffle_head.json"):
        settings, results = record["settings"], record["results"]
        columns = {
            "depth_abs_rel": ("depth AbsRel, %", 100), "depth_delta": ("δ < 1.25, %", 100),
            "head_overall": ("points", 1), "unprojected_overall": ("points from depth and cameras", 1),
            "auc_30": ("AUC@30, %", 100),
        }  # fmt: skip
        rows = [
            [arm.replace("_", " "), *(format_error(found[name], factor) for name, (_, factor) in columns.items())]
            for arm, found in results["accuracy"].items()
        ]
        text += f"{settings['steps']} steps, {len(settings['seeds'])} seeds ({describe(record)}); ± half of the 95 % "
        text += "interval over the seeds:\n\n" + table(["", *(label for label, _ in columns.values())], rows)
        rows = [
            [f"{size.replace('x', ' × ')}, {name}",
             *(f"{1000 * found['median_s'][arm]:,.0f}" for arm in settings["arms"]),
             found["median_time_ratio"], *(f"{found['peak_mib'][arm]:,.0f}" for arm in settings["arms"]),
             found["memory_ratio"]]
            for size, kinds in results["cost"].items()
            for name, found in kinds.items()
            if name in ("step", "forward")
        ]  # fmt: skip
        arms = [arm.replace("_", " ") for arm in settings["arms"]]
        head = ["4 scenes of 2 views", *(f"{arm}, ms" for arm in arms), "ratio", *(f"{arm}, MiB" for arm in arms)]
        text += table([*head, "ratio"], rows)
    return text or NOT_MEASURED


def make_pair_training() -> str:
    """A model of pairs against alternating attention: points over seeds, time and memory in turns."""
    text = ""
    for record in read("pair_training.json"):
        settings, results = record["settings"], record["results"]
        columns = {
            "point_error": "points, error", "point_error_second": "of the second view",
            "head_accuracy": "clouds, accuracy", "head_completeness": "completeness", "head_overall": "overall",
        }  # fmt: skip
        rows = []
        for arm, found in results["accuracy"].items():
            rows.append([arm, *(format_error(found[name], 1) for name in columns)])
        text += f"{settings['steps']} steps, {len(settings['seeds'])} seeds ({describe(record)}); ± half of the 95 % "
        text += "interval over the seeds:\n\n" + table(["", *columns.values()], rows)
        cost = results["cost"]
        parts = (cost["parameters"], {arm: 1000 * each for arm, each in cost["median_s"].items()}, cost["peak_mib"])
        rows = [[arm, *(f"{part[arm]:,.0f}" for part in parts)] for arm in settings["arms"]]
        text += table(["a training step, in turns", "parameters", "ms of the processor", "MiB"], rows)
    return text or NOT_MEASURED


def make_pair_photos() -> str:
    """Photos to files by models that see pairs."""
    text = ""
    for record in read("pair_photos.json"):
        settings, rows = record["settings"], []
        for model, cases in record["results"].items():
            for case, found in cases.items():
                end = found.get("error", "the files").removeprefix("geomtx: error: ").partition(";")[0]
                counts = (f"{found[what]} in {found[seconds]:.0f} s" for what, seconds in _OF_PAIRS.items())
                name = model.rpartition("/")[2].partition("_")[0]
                rows.append(
                    [f"{name} 512, {case}", f"{found['command_s']:.0f}", found["command_peak_gib"], *counts, end]
                )
        text += (
            "Photos to files by `geomtx reconstruct`, full size, weights made up, float32, "
            f"{settings['threads']} threads ({describe(record)}); the memory is all that the process had at most:\n\n"
        )
        text += table(["", "seconds", "GiB", "photos encoded", "pairs decoded", "as far as"], rows)
    return text or NOT_MEASURED


_OF_PAIRS = {"photos_encoded": "encode_s", "pairs_decoded": "decode_s"}


def make_global_alignment() -> str:
    """Two ways to the minimum of global alignment, and the memory that it takes."""
    text = ""
    for record in read("global_alignment_methods.json"):
        settings, rows = record["settings"], []
        for room, found in record["results"].items():
            for method, each in found.items():
                if method != "ratio":
                    cells = (f"{each['auc_5']:.1f}", f"{each['median_degrees']:.2f}", f"{each['loss']:.4f}")
                    rows.append([f"{room}, {method}", *cells, each["steps"], f"{each['seconds']:.1f}"])
        height, width = settings["image_hw"]
        text += (
            f"Rendered rooms with known truth in place of a network: {settings['views']} views of {width}×{height} "
            f"pixels, all pairs, with noise, outliers and wrong scales ({describe(record)}). "
            '"published" are 300 steps of Adam, '
            '"fast" is the default, whose rounds were chosen on other rooms, and both begin with "start":\n\n'
        )
        text += table(["", "AUC@5", "median pose error, degrees", "loss", "steps", "seconds"], rows)
    for record in read("global_alignment_memory.json"):
        results = record["results"]
        rows = [[pairs, f"{found['peak_mib']:,.0f}"] for pairs, found in results["pairs"].items()]
        line = results["line"]
        text += (
            f"Memory at most while pairs of 20 such images are aligned ({describe(record)}), with libraries and the "
            f"pairs' own maps: {line['intercept_mib']:,.0f} MiB and {line['slope_mib']:.2f} MiB a pair, of which "
            f"the maps are {line['maps_mib']:.2f} in float32; no row is more than "
            f"{line['largest_off_mib']:.1f} MiB off that line:\n\n"
        )
        text += table(["pairs", "MiB"], rows)
    return text or NOT_MEASURED


MAKERS: dict[str, Callable[[], str]] = {
    "memory": make_memory,
    "memory_da3": make_memory_da3,
    "memory_omega": make_memory_omega,
    "memory_pi3": make_memory_pi3,
    "pair_training": make_pair_training,
    "pair_photos": make_pair_photos,
    "global_alignment": make_global_alignment,
    "pixel_shuffle": make_pixel_shuffle,
    "exactness": make_exactness,
    "views": make_views,
    "time": make_time,
    "load": make_load,
    "bundle": make_bundle,
    "refine": make_refine,
    "nano": make_nano,
    "ablations": make_ablations,
    "long": make_long,
    "quantised": make_quantised,
    "attention": make_attention,
    "nvs": make_nvs,
    "moving_things": make_moving_things,
    "video": make_video,
    "video_tracking": make_video_tracking,
    "report_page": make_report_page,
    "photos": make_photos,
}

if __name__ == "__main__":
    main()

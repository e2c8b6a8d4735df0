// What mouse, fingers, wheel, keys and the controls beside the canvas do to a view.

const CLICK_PIXELS = 5; // a press that moves less is a click
const KEYS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};

function listen(view) {
  listenToPointers(view);
  listenToKeys(view);
  const { canvas, eye } = view;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    view.rest();
    eye.zoom(Math.exp(clamp(event.deltaY * (event.deltaMode === 1 ? 0.05 : 0.0015), -0.5, 0.5)));
    view.change();
  }, { passive: false });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
}

function listenToPointers(view) {
  const { canvas, eye, stage } = view, pointers = new Map();
  let moved = 0;
  const middle = () => [...pointers.values()].reduce(([x, y], p) => [x + p.x / pointers.size, y + p.y / pointers.size], [0, 0]);
  const apart = () => {
    const [a, b] = [...pointers.values()];
    return b ? Math.hypot(a.x - b.x, a.y - b.y) : 0;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    if (pointers.size === 0) moved = 0;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size > 1) moved = Infinity;
    view.rest();
  });
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = middle(), width = apart();
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const after = middle(), [dx, dy] = [after[0] - before[0], after[1] - before[1]];
    moved += Math.hypot(dx, dy);
    if (moved < CLICK_PIXELS) return;
    const { clientHeight: height } = canvas;
    if (pointers.size > 1 || event.buttons & 6 || event.shiftKey || event.ctrlKey) eye.move(dx / height, dy / height);
    else eye.turn((dx / height) * 3, (dy / height) * 3);
    if (pointers.size === 2 && width > 0) eye.zoom(width / Math.max(apart(), 1));
    for (const hint of stage.querySelectorAll(".hint")) hint.hidden = true;
    view.change();
  });
  const release = (event) => {
    const down = pointers.delete(event.pointerId);
    if (!down || event.type !== "pointerup" || moved >= CLICK_PIXELS || event.button !== 0) return;
    const box = canvas.getBoundingClientRect();
    view.measure(event.clientX - box.left, event.clientY - box.top, event.pointerType === "touch" ? 24 : 12);
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
}

function listenToKeys(view) {
  const { canvas, eye } = view;
  const actions = {
    "+": () => eye.zoom(0.85), "=": () => eye.zoom(0.85), "-": () => eye.zoom(1 / 0.85),
    n: () => view.step(1), p: () => view.step(-1), r: () => view.reset(), Home: () => view.reset(), Escape: () => view.clear(),
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const arrow = KEYS[event.key], action = actions[event.key] || actions[event.key.toLowerCase()];
    if (!arrow && !action) return;
    event.preventDefault();
    view.rest();
    if (action) action();
    else if (event.shiftKey) eye.move(-0.05 * arrow[0], -0.05 * arrow[1]);
    else eye.turn(-0.08 * arrow[0], -0.08 * arrow[1]);
    view.change();
  });
}

/** Connect the controls beside the canvas. */
function connect(view) {
  const { controls, scene, shown } = view, find = (id) => controls.querySelector(`#${id}`);
  const counts = countRanks(scene);
  const update = () => {
    const share = Number(find("confidence").value), times = 2 ** (Number(find("size").value) / 8);
    shown.threshold = Math.min(255, Math.floor(share * 2.56));
    shown.size = times;
    find("share").textContent = `${share} %`;
    find("times").textContent = `× ${times.toPrecision(2)}`;
    const kept = counts.reduce((sum, row, n) => sum + (shown.views[n] ? row[shown.threshold] : 0), 0);
    find("count").textContent = `${kept.toLocaleString("en")} of ${scene.count.toLocaleString("en")} points shown`;
    for (const name of ["frusta", "images", "tracks"]) shown[name] = find(name).checked;
    view.change();
  };
  for (const input of controls.querySelectorAll("input")) input.addEventListener("input", update);
  const chips = scene.colors.map((color, index) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = index;
    chip.style.setProperty("--color", color);
    chip.addEventListener("click", () => switchTo(index, !shown.views[index]));
    find("views").append(chip);
    return chip;
  });
  const switchTo = (index, on) => {
    shown.views[index] = on;
    chips[index].setAttribute("aria-pressed", on);
    update();
  };
  chips.forEach((_, index) => switchTo(index, true));
  find("all").addEventListener("click", () => chips.forEach((_, index) => switchTo(index, true)));
  find("none").addEventListener("click", () => chips.forEach((_, index) => switchTo(index, false)));
  find("reset").addEventListener("click", () => view.reset());
  find("next").addEventListener("click", () => view.step(1));
  find("previous").addEventListener("click", () => view.step(-1));
  find("whole").hidden = !document.fullscreenEnabled;
  find("whole").addEventListener("click", () =>
    document.fullscreenElement ? document.exitFullscreen() : document.querySelector("#space").requestFullscreen());
  const has = { points: scene.count > 0, cameras: scene.cameras.some(Boolean), tracks: scene.tracks.length > 0 };
  for (const [name, there] of Object.entries(has)) {
    for (const each of controls.querySelectorAll(`.${name}`)) each.hidden = !there;
  }
}

/** For each view and rank, the number of its points of that rank or a higher one. */
function countRanks({ first, ranks }) {
  return first.slice(1).map((end, view) => {
    const counts = new Uint32Array(256);
    for (let n = first[view]; n < end; n++) counts[ranks[n]] += 1;
    for (let rank = 254; rank >= 0; rank--) counts[rank] += counts[rank + 1];
    return counts;
  });
}

// The view in space: the scene as the page holds it, its controls, and what mouse, fingers and keys do.
//
// For tests and for the curious, `window.geomtx` has
//   frames        number of frames that were drawn so far
//   moving        whether the eye is on its way to a camera
//   locate(place) pixels [x, y] of the window where a place of the scene's world is seen, null if behind the eye
//   distance      the distance measured last, in units of the scene; null if there is none

/** Bring what Python wrote into the page's frame: the middle of the points is the origin, their longest side is 1. */
function readScene(data, bytes) {
  const extent = Math.max(...data.box.size) || 1;
  const middle = data.box.low.map((low, n) => low + data.box.size[n] / 2);
  const local = (place) => place.map((value, n) => (value - middle[n]) / extent);
  const camera = (each) =>
    each && {
      ...each,
      center: local(each.center),
      corners: each.corners.map(local),
      depth: each.depth / extent,
      reach: each.reach / extent,
      // The width of a pixel at a place is linear in the place: its depth times a constant.
      width: [...each.width.slice(0, 3), (each.width[3] + dot(each.width, middle)) / extent],
    };
  return {
    bytes,
    local,
    extent,
    middle,
    units: data.units,
    down: data.down,
    count: data.count,
    first: data.first,
    colors: data.colors,
    low: local(data.box.low),
    step: data.box.size.map((size) => size / extent / 65535),
    spread: data.spread / extent,
    cameras: data.cameras.map(camera),
    tracks: data.tracks.map(({ places, color }) => ({ places: places.map(local), color })),
    grid: new Uint16Array(bytes.buffer, 0, 3 * data.count),
    ranks: bytes.subarray(9 * data.count),
  };
}

class View {
  constructor(stage, controls, scene) {
    Object.assign(this, { stage, controls, scene });
    this.canvas = stage.querySelector("canvas");
    const first = scene.cameras.find(Boolean);
    this.eye = new Eye(levelAxes(scene.down, first ? first.forward : [0, 0, 1]));
    this.shown = {
      views: scene.first.slice(1).map(() => true), threshold: 0, size: 1, frusta: true, images: true, tracks: false,
    };
    this.camera = -1; // the one whose place was taken last
    this.ends = []; // of the distance that is measured
    this.state = { frames: 0, moving: false, distance: null, locate: (place) => this.locate(place) };
    window.geomtx = this.state;
  }

  /** Begin; false where there is no WebGL 2. */
  start() {
    const gl = this.canvas.getContext("webgl2", { antialias: true });
    if (!gl) return false;
    this.painter = new Painter(gl, this.scene);
    Object.assign(this.eye, this.home());
    this.canvas.addEventListener("webglcontextlost", () => this.stage.classList.remove("live"));
    new ResizeObserver(() => this.change()).observe(this.stage);
    this.scene.cameras.forEach((camera, index) => {
      const image = document.querySelector(`#view-${index} .photo img`);
      if (!camera || !image) return;
      const copy = new Image(); // the one in its card may be far below the window, and is decoded later then
      copy.src = image.src;
      copy.decode().then(() => {
        this.painter.addPhoto(index, copy);
        this.change();
      }, () => {}); // a photo that can't be decoded is left out
    });
    this.change();
    return true;
  }

  /** Something is different: draw a frame when the screen is ready for one. */
  change() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.draw();
    });
  }

  draw() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2), { clientWidth, clientHeight } = this.canvas;
    const size = [clientWidth, clientHeight].map((side) => Math.max(1, Math.round(side * ratio)));
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) [this.canvas.width, this.canvas.height] = size;
    this.matrix = this.eye.matrix(size[0] / size[1]);
    this.painter.draw(this.matrix, this.eye, this.shown, ratio);
    drawLabels(this);
    this.stage.classList.add("live");
    this.state.frames += 1;
  }

  /** A little behind the first camera, looking the way it looks; without cameras, in front of the points. */
  home() {
    const first = this.scene.cameras.find(Boolean);
    if (!first) return this.eye.looking([0, 0, 1], [1, 0, 0], [0, 0, 0], 2);
    const depth = clamp(first.depth, 0.05, 5), back = clamp(0.35 * depth, 3 * first.reach, 1);
    const { forward } = first, target = plus(first.center, forward, depth);
    const goal = this.eye.looking(forward, first.right, target, depth + back);
    return { ...goal, pitch: goal.pitch + 6 * DEGREE, roll: 0 };
  }

  /** Look through a camera, with its photo's angle of view. */
  goTo(index) {
    const camera = this.scene.cameras[index];
    if (!camera) return;
    this.camera = index;
    const aspect = this.canvas.clientWidth / this.canvas.clientHeight, [x, y] = camera.tangents;
    const tangent = Math.max(y, x / aspect), depth = clamp(camera.depth, 0.02, 10);
    this.moveTo(this.eye.looking(camera.forward, camera.right, plus(camera.center, camera.forward, depth), depth, tangent));
    this.controls.querySelector("#camera").textContent = `Camera ${index}`;
  }

  /** The next or the previous camera, by 1 or -1. */
  step(by) {
    const { length } = this.scene.cameras;
    let index = this.camera < 0 && by < 0 ? 0 : this.camera;
    for (let tries = 0; tries < length; tries++) {
      index = (index + by + length) % length;
      if (this.scene.cameras[index]) return this.goTo(index);
    }
  }

  reset() {
    this.camera = -1;
    this.controls.querySelector("#camera").textContent = "Camera";
    this.moveTo(this.home());
  }

  /** Bring the eye to new values, at once for those who want less motion. */
  moveTo(goal) {
    const start = { ...this.eye }, began = performance.now();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const near = (angle) => angle - 2 * Math.PI * Math.round(angle / (2 * Math.PI)); // the short way around
    const journey = (this.journey = {});
    this.state.moving = true;
    const advance = () => {
      if (this.journey !== journey) return; // the user has taken over
      const time = still ? 1 : Math.min(1, (performance.now() - began) / 400), share = time * time * (3 - 2 * time);
      for (const name of ["distance", "tangent"]) this.eye[name] = start[name] + share * (goal[name] - start[name]);
      for (const name of ["yaw", "pitch", "roll"]) this.eye[name] = start[name] + share * near(goal[name] - start[name]);
      this.eye.target = mix(start.target, goal.target, share);
      this.draw();
      if (time < 1) requestAnimationFrame(advance);
      else this.rest();
    };
    requestAnimationFrame(advance);
  }

  rest() {
    this.journey = null;
    this.state.moving = false;
  }

  locate(place) {
    const found = project(this.matrix, this.scene.local(place), this.canvas.clientWidth, this.canvas.clientHeight);
    const box = this.canvas.getBoundingClientRect();
    return found && [box.left + found[0], box.top + found[1]];
  }

  /** The place of the foremost shown point whose disc is at, or near, pixels of the canvas; null without one. */
  pick(x, y, reach) {
    const { scene, shown, matrix, eye } = this, { grid, ranks, low, step, first } = scene;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    const size = (shown.size * height) / (2 * eye.tangent) / 2;
    let best = null, bestDepth = Infinity, bestMiss = Infinity;
    shown.views.forEach((on, view) => {
      const wide = scene.cameras[view] ? scene.cameras[view].width : [0, 0, 0, scene.spread];
      for (let n = first[view]; on && n < first[view + 1]; n++) {
        if (ranks[n] < shown.threshold) continue;
        const place = [low[0] + step[0] * grid[3 * n], low[1] + step[1] * grid[3 * n + 1], low[2] + step[2] * grid[3 * n + 2]];
        const found = project(matrix, place, width, height);
        if (!found) continue;
        const miss = Math.hypot(found[0] - x, found[1] - y);
        const radius = clamp((size * (dot(wide, place) + wide[3])) / found[2], 1.5, 24);
        // What the disc of a point covers is at the foremost; elsewhere the nearest point on the screen counts.
        const covered = miss <= radius;
        if (covered ? bestMiss > 0 || found[2] < bestDepth : miss < Math.min(reach, bestMiss)) {
          [best, bestDepth, bestMiss] = [place, found[2], covered ? 0 : miss];
        }
      }
    });
    return best;
  }

  /** A click measures: the first one begins, the second one ends, the third one begins anew. */
  measure(x, y, reach) {
    const place = this.pick(x, y, reach);
    if (!place) return;
    this.ends = this.ends.length === 1 ? [this.ends[0], place] : [place];
    this.tell();
  }

  clear() {
    this.ends = [];
    this.tell();
  }

  tell() {
    const output = this.stage.querySelector(".distance"), { ends, scene } = this;
    const distance = ends.length === 2 ? Math.hypot(...plus(ends[0], ends[1], -1)) * scene.extent : null;
    this.state.distance = distance;
    this.text = distance === null ? "" : describeDistance(distance, scene.units);
    output.hidden = ends.length === 0;
    output.textContent = ends.length === 1 ? "Click a second point" : this.text;
    this.change();
  }
}

function describeDistance(distance, units) {
  const number = distance >= 1e5 || distance < 1e-3 ? distance.toExponential(3) : distance.toPrecision(4);
  return units === "up to scale" ? `${number} (no unit: up to scale)` : `${number} ${units}`;
}

/** Write the numbers of cameras, and draw the measured distance, over the canvas. */
function drawLabels(view) {
  const { matrix, scene, shown, stage, ends } = view, { clientWidth: width, clientHeight: height } = view.canvas;
  const at = (place) => project(matrix, place, width, height);
  const eye = view.eye.axes().place;
  const labels = scene.cameras.map((camera, index) => {
    if (!camera || !shown.frusta || scene.cameras.length > 40) return "";
    if (Math.hypot(...plus(camera.center, eye, -1)) <= camera.reach) return "";
    const found = at(plus(camera.center, camera.forward, -0.25 * camera.reach));
    return found ? `<text x="${found[0]}" y="${found[1]}" fill="${scene.colors[index]}">${index}</text>` : "";
  });
  stage.querySelector(".numbers").innerHTML = labels.join("");
  const [a, b] = ends.map(at);
  const marks = [a, b].filter(Boolean).map(([x, y]) => `<circle cx="${x}" cy="${y}" r="6"/>`);
  const line = a && b ? `<line x1="${a[0]}" y1="${a[1]}" x2="${b[0]}" y2="${b[1]}"/>` : "";
  stage.querySelector(".ruler").innerHTML = line + marks.join("");
}

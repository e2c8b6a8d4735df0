// Drawing with WebGL 2: points as discs as wide as the surface that each stands for, lines, and photos in space.

const POINTS = [
  `#version 300 es
  in vec3 position; in vec3 color; in float rank;
  uniform mat4 matrix; uniform vec3 low, step; uniform vec4 width; uniform float size, threshold;
  out vec3 tint;
  void main() {
    vec3 place = low + step * position;
    gl_Position = rank < threshold ? vec4(2.0, 2.0, 2.0, 1.0) : matrix * vec4(place, 1.0);
    float wide = max(dot(width.xyz, place) + width.w, 0.0);
    gl_PointSize = clamp(size * wide / max(gl_Position.w, 1e-6), 1.5, 48.0);
    tint = color;
  }`,
  `#version 300 es
  precision mediump float;
  in vec3 tint; out vec4 result;
  void main() {
    vec2 off = gl_PointCoord - 0.5;
    if (dot(off, off) > 0.25) discard;
    result = vec4(tint, 1.0);
  }`,
];

// Each line is a rectangle of two triangles: WebGL's own lines are a pixel wide.
const LINES = [
  `#version 300 es
  in vec3 start, end, color;
  uniform mat4 matrix; uniform vec2 pixels; uniform float thickness, near;
  out vec3 tint;
  void main() {
    vec4 a = matrix * vec4(start, 1.0), b = matrix * vec4(end, 1.0);
    tint = color;
    if (max(a.w, b.w) < near) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
    if (a.w < near) a = mix(a, b, (near - a.w) / (b.w - a.w));
    if (b.w < near) b = mix(b, a, (near - b.w) / (a.w - b.w));
    vec2 along = (b.xy / b.w - a.xy / a.w) * pixels;
    along = length(along) > 1e-6 ? normalize(along) : vec2(1.0, 0.0);
    vec4 corner = (gl_VertexID & 1) == 0 ? a : b;
    float side = gl_VertexID < 2 ? -1.0 : 1.0;
    corner.xy += vec2(-along.y, along.x) * side * thickness / pixels * corner.w;
    gl_Position = corner;
  }`,
  `#version 300 es
  precision mediump float;
  in vec3 tint; out vec4 result;
  void main() { result = vec4(tint, 1.0); }`,
];

const PHOTOS = [
  `#version 300 es
  in vec3 position; in vec2 corner;
  uniform mat4 matrix;
  out vec2 place;
  void main() { gl_Position = matrix * vec4(position, 1.0); place = corner; }`,
  `#version 300 es
  precision mediump float;
  in vec2 place; out vec4 result;
  uniform sampler2D photo;
  void main() { result = vec4(texture(photo, place).rgb, 1.0); }`,
];

const TEXTURE_SIDE = 320; // pixels; a photo in a frustum is never large in the picture

/** Draws a scene. `scene` has points, cameras and tracks in the page's frame, see `scene.js`. */
class Painter {
  constructor(gl, scene) {
    this.gl = gl;
    this.scene = scene;
    this.textures = new Map();
    this.programs = { points: this.build(POINTS), lines: this.build(LINES), photos: this.build(PHOTOS) };
    if (scene.count) this.points = this.pointArrays(scene.bytes, scene.count);
    this.frusta = scene.cameras.map((camera) => camera && this.lineArrays(frustumEdges(camera)));
    this.quads = scene.cameras.map((camera) => camera && this.quadArrays(camera.corners));
    this.tracks = scene.tracks.length ? this.lineArrays(scene.tracks.flatMap(trackEdges)) : null;
    this.dots = scene.tracks.length ? this.dotArrays(scene.tracks) : null;
    gl.enable(gl.DEPTH_TEST);
  }

  build([vertex, fragment]) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    const uniforms = {};
    for (let n = 0; n < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); n++) {
      const { name } = gl.getActiveUniform(program, n);
      uniforms[name] = gl.getUniformLocation(program, name);
    }
    return { program, uniforms };
  }

  /** A vertex array whose attributes lie in one buffer: [name, components, type, normalized, stride, offset, divisor]. */
  arrays(kind, data, attributes) {
    const gl = this.gl, array = gl.createVertexArray();
    gl.bindVertexArray(array);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    for (const [name, size, type, normalized, stride, offset, divisor = 0] of attributes) {
      const index = gl.getAttribLocation(this.programs[kind].program, name);
      gl.enableVertexAttribArray(index);
      gl.vertexAttribPointer(index, size, type, normalized, stride, offset);
      gl.vertexAttribDivisor(index, divisor);
    }
    gl.bindVertexArray(null);
    return array;
  }

  pointArrays(bytes, count) {
    const gl = this.gl;
    return this.arrays("points", bytes, [
      ["position", 3, gl.UNSIGNED_SHORT, false, 6, 0],
      ["color", 3, gl.UNSIGNED_BYTE, true, 3, 6 * count],
      ["rank", 1, gl.UNSIGNED_BYTE, false, 1, 9 * count],
    ]);
  }

  lineArrays(edges) {
    const gl = this.gl, data = new Float32Array(edges.flatMap(({ start, end, color }) => [...start, ...end, ...color]));
    const array = this.arrays("lines", data, [
      ["start", 3, gl.FLOAT, false, 36, 0, 1],
      ["end", 3, gl.FLOAT, false, 36, 12, 1],
      ["color", 3, gl.FLOAT, false, 36, 24, 1],
    ]);
    return { array, count: edges.length };
  }

  dotArrays(tracks) {
    const gl = this.gl, rows = tracks.flatMap(({ places, color }) => places.map((place) => [...place, ...color, 255]));
    const array = this.arrays("points", new Float32Array(rows.flat()), [
      ["position", 3, gl.FLOAT, false, 28, 0],
      ["color", 3, gl.FLOAT, false, 28, 12],
      ["rank", 1, gl.FLOAT, false, 28, 24],
    ]);
    return { array, count: rows.length };
  }

  quadArrays(corners) {
    const gl = this.gl, [a, b, c, d] = corners; // clockwise from the upper left
    const data = new Float32Array([...a, 0, 0, ...b, 1, 0, ...d, 0, 1, ...c, 1, 1]);
    return this.arrays("photos", data, [
      ["position", 3, gl.FLOAT, false, 20, 0],
      ["corner", 2, gl.FLOAT, false, 20, 12],
    ]);
  }

  /** Keep a photo, an <img> that is loaded, as the texture of a camera. */
  addPhoto(index, image) {
    const gl = this.gl, canvas = document.createElement("canvas");
    const scale = Math.min(1, TEXTURE_SIDE / Math.max(image.naturalWidth, image.naturalHeight));
    canvas.width = Math.max(1, Math.round(image.naturalWidth * scale));
    canvas.height = Math.max(1, Math.round(image.naturalHeight * scale));
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, canvas);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    this.textures.set(index, texture);
  }

  /** Draw one frame. `shown` says what is on, see `scene.js`; `ratio` is device pixels for one of CSS. */
  draw(matrix, eye, shown, ratio) {
    const gl = this.gl, { width, height } = gl.canvas;
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    this.drawPoints(matrix, eye, shown, height);
    const seen = (camera) => camera && Math.hypot(...plus(camera.center, eye.axes().place, -1)) > camera.reach;
    const cameras = shown.frusta ? this.scene.cameras.map((camera, n) => (seen(camera) ? n : -1)).filter((n) => n >= 0) : [];
    this.use("lines", matrix);
    const { uniforms } = this.programs.lines;
    gl.uniform2f(uniforms.pixels, width, height);
    gl.uniform1f(uniforms.near, eye.distance * 0.004);
    gl.uniform1f(uniforms.thickness, 1.8 * ratio);
    for (const n of cameras) this.drawLines(this.frusta[n]);
    if (shown.tracks && this.tracks) this.drawLines(this.tracks);
    if (shown.images) this.drawPhotos(matrix, cameras);
    gl.bindVertexArray(null);
  }

  use(kind, matrix) {
    const { program, uniforms } = this.programs[kind];
    this.gl.useProgram(program);
    this.gl.uniformMatrix4fv(uniforms.matrix, false, matrix);
  }

  drawPoints(matrix, eye, shown, height) {
    const gl = this.gl, { uniforms } = this.programs.points, { low, step, first, cameras, spread } = this.scene;
    const size = height / (2 * eye.tangent);
    this.use("points", matrix);
    if (this.points) {
      gl.uniform3fv(uniforms.low, low);
      gl.uniform3fv(uniforms.step, step);
      gl.uniform1f(uniforms.size, size * shown.size);
      gl.uniform1f(uniforms.threshold, shown.threshold);
      gl.bindVertexArray(this.points);
      shown.views.forEach((on, view) => {
        if (!on || first[view] === first[view + 1]) return;
        gl.uniform4fv(uniforms.width, cameras[view] ? cameras[view].width : [0, 0, 0, spread]);
        gl.drawArrays(gl.POINTS, first[view], first[view + 1] - first[view]);
      });
    }
    if (shown.tracks && this.dots) {
      gl.uniform3f(uniforms.low, 0, 0, 0);
      gl.uniform3f(uniforms.step, 1, 1, 1);
      gl.uniform1f(uniforms.size, size);
      gl.uniform1f(uniforms.threshold, 0);
      gl.uniform4f(uniforms.width, 0, 0, 0, 0.006);
      gl.bindVertexArray(this.dots.array);
      gl.drawArrays(gl.POINTS, 0, this.dots.count);
    }
  }

  drawLines({ array, count }) {
    this.gl.bindVertexArray(array);
    this.gl.drawArraysInstanced(this.gl.TRIANGLE_STRIP, 0, 4, count);
  }

  drawPhotos(matrix, cameras) {
    const gl = this.gl;
    this.use("photos", matrix);
    for (const n of cameras.filter((each) => this.textures.has(each))) {
      gl.bindTexture(gl.TEXTURE_2D, this.textures.get(n));
      gl.bindVertexArray(this.quads[n]);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
  }
}

/** The eight edges of a camera: from its centre to the corners of its photo, and around the photo. */
function frustumEdges({ center, corners, color }) {
  const around = corners.map((corner, n) => ({ start: corner, end: corners[(n + 1) % 4], color }));
  return [...around, ...corners.map((corner) => ({ start: center, end: corner, color }))];
}

function trackEdges({ places, color }) {
  return places.slice(1).map((end, n) => ({ start: places[n], end, color }));
}

// Vectors as arrays of three numbers, and the eye from which the scene is seen. Axes are OpenCV's: x right, y down,
// z forward. All places are in a frame of the page's own, in which the points fill a box whose longest side is 1.

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const mix = (a, b, share) => a.map((value, n) => value + (b[n] - value) * share);
const plus = (a, b, times = 1) => [a[0] + times * b[0], a[1] + times * b[1], a[2] + times * b[2]];
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => a.map((value) => value / (Math.hypot(...a) || 1));
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

const DEGREE = Math.PI / 180;
const NORMAL_TANGENT = Math.tan(25 * DEGREE); // of half the angle of view, from top to bottom

/** The level axes that turning is about: down, and what is ahead and right of someone who looks that way. */
function levelAxes(down, forward) {
  down = unit(down);
  let ahead = plus(forward, down, -dot(forward, down));
  if (Math.hypot(...ahead) < 1e-6) ahead = cross(Math.abs(down[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0], down);
  ahead = unit(ahead);
  return { down, ahead, right: cross(down, ahead) };
}

/** Where one looks from: an eye that turns around a target. Angles are in radians. */
class Eye {
  constructor(axes) {
    this.level = axes;
    Object.assign(this, { target: [0, 0, 1], distance: 1, yaw: 0, pitch: 0, roll: 0, tangent: NORMAL_TANGENT });
  }

  /** The eye's own axes, and its place. */
  axes() {
    const { down, ahead, right } = this.level;
    const [cosYaw, sinYaw] = [Math.cos(this.yaw), Math.sin(this.yaw)];
    const [cosPitch, sinPitch] = [Math.cos(this.pitch), Math.sin(this.pitch)];
    const flat = plus(ahead.map((v) => v * cosYaw), right, sinYaw);
    const forward = plus(flat.map((v) => v * cosPitch), down, sinPitch);
    const across = plus(right.map((v) => v * cosYaw), ahead, -sinYaw);
    const below = cross(forward, across);
    const [cosRoll, sinRoll] = [Math.cos(this.roll), Math.sin(this.roll)];
    return {
      forward,
      right: plus(across.map((v) => v * cosRoll), below, sinRoll),
      down: plus(below.map((v) => v * cosRoll), across, -sinRoll),
      place: plus(this.target, forward, -this.distance),
    };
  }

  /** The values with which the eye looks along an axis at a target; `right` is the right of the picture. */
  looking(forward, right, target, distance, tangent = NORMAL_TANGENT) {
    const { down, ahead, right: side } = this.level;
    forward = unit(forward);
    const goal = new Eye(this.level);
    Object.assign(goal, { target, distance, tangent });
    goal.yaw = Math.atan2(dot(forward, side), dot(forward, ahead));
    goal.pitch = Math.asin(clamp(dot(forward, down), -1, 1));
    const own = goal.axes();
    goal.roll = Math.atan2(dot(right, own.down), dot(right, own.right));
    const { yaw, pitch, roll } = goal;
    return { target, distance, tangent, yaw, pitch, roll };
  }

  turn(across, down) {
    this.yaw -= across;
    this.pitch = clamp(this.pitch + down, -89 * DEGREE, 89 * DEGREE);
    this.roll *= 0.8; // what a tilted photo brought along
  }

  /** Move by shares of the picture's height. */
  move(across, down) {
    const own = this.axes(), height = 2 * this.tangent * this.distance;
    this.target = plus(plus(this.target, own.right, -across * height), own.down, -down * height);
  }

  zoom(factor) {
    this.distance = clamp(this.distance * factor, 1e-3, 50);
  }

  /** The matrix, column by column, from places to clip space, for a picture of some width over height. */
  matrix(aspect) {
    const { right, down, forward, place } = this.axes();
    const near = this.distance * 0.004, far = this.distance + 100;
    const rows = [right.map((v) => v / (this.tangent * aspect)), down.map((v) => -v / this.tangent), forward];
    const shifts = rows.map((row) => -dot(row, place));
    const slope = (far + near) / (far - near), offset = (-2 * far * near) / (far - near);
    const columns = [0, 1, 2].map((n) => [rows[0][n], rows[1][n], slope * rows[2][n], rows[2][n]]);
    return new Float32Array([...columns.flat(), shifts[0], shifts[1], slope * shifts[2] + offset, shifts[2]]);
  }
}

/** Pixels [x, y] and depth of a place; null behind the eye. */
function project(matrix, place, width, height) {
  const [x, y, , w] = [0, 1, 2, 3].map(
    (n) => matrix[n] * place[0] + matrix[4 + n] * place[1] + matrix[8 + n] * place[2] + matrix[12 + n],
  );
  return w <= 1e-9 ? null : [((x / w + 1) / 2) * width, ((1 - y / w) / 2) * height, w];
}

// The page around the view in space: light and dark, which pictures the cards show, and the start of it all.

const root = document.documentElement;

function connectTheme() {
  const button = document.querySelector("#theme"), key = "geomtx-theme";
  const recall = (action) => {
    try {
      return action();
    } catch {
      return null; // files from disk may have no storage
    }
  };
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const kept = recall(() => localStorage.getItem(key));
  if (kept) root.dataset.theme = kept;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    recall(() => localStorage.setItem(key, root.dataset.theme));
  });
}

function connectCards(view) {
  const photos = document.querySelector("#photos"), buttons = [...photos.querySelectorAll(".choices button")];
  const tracks = photos.querySelector(".toggle");
  tracks?.addEventListener("click", () => {
    tracks.setAttribute("aria-pressed", !photos.classList.toggle("hide-tracks"));
  });
  const show = (name) => {
    photos.dataset.show = name;
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.show === name);
  };
  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.show));
  for (const button of photos.querySelectorAll("[data-camera]")) {
    button.hidden = !view;
    button.addEventListener("click", () => {
      view.stage.scrollIntoView({ behavior: "smooth", block: "center" });
      view.goTo(Number(button.dataset.camera));
    });
  }
}

function startView() {
  const data = document.querySelector("#scene"), stage = document.querySelector(".stage");
  if (!data) return null;
  const text = document.querySelector("#points").textContent.trim();
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const controls = document.querySelector(".controls");
  const view = new View(stage, controls, readScene(JSON.parse(data.textContent), bytes));
  let started = false;
  try {
    started = view.start();
  } catch (error) {
    console.error(error); // WebGL that can't do what it says
  }
  if (!started) {
    stage.querySelector(".problem").hidden = false;
    stage.querySelector("canvas").remove();
    document.querySelector("#space").classList.add("still");
    return null;
  }
  controls.hidden = false;
  for (const hint of stage.querySelectorAll(".hint")) hint.hidden = false;
  listen(view);
  connect(view);
  return view;
}

connectTheme();
connectCards(startView());

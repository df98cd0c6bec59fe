// Answers to the pointer in every .fv-figure, those included that come into the page later.
(() => {
  if (window.foveateFigures) return;
  window.foveateFigures = true;
  const svg = "http://www.w3.org/2000/svg";
  // From black over violet and orange to a light yellow: one of another lightness for every value.
  const ramp = [[0, 0, 4], [41, 17, 90], [114, 31, 129], [183, 55, 121], [241, 96, 93], [254, 159, 109], [252, 253, 191]];
  const states = new WeakMap();

  const stateOf = (figure) => {
    const given = figure.dataset.fv;
    let state = states.get(figure);
    if (!state || state.given !== given) {
      state = { given, data: JSON.parse(given), layer: 0, map: null, pinned: null };
      state.kept = new Set(state.data.kept);
      state.missing = new Set(state.data.missing || []);
      states.set(figure, state);
      bar(figure, state);
    }
    return state;
  };
  const layers = (figure) => [...figure.querySelectorAll(".fv-layer")];
  const viewsOf = (figure, state) => new Set(JSON.parse(layers(figure)[state.layer].dataset.views));

  const bar = (figure, state) => {
    const place = figure.querySelector(".fv-bar");
    place.replaceChildren();
    const button = (text, title, pressed, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.title = title;
      made.setAttribute("aria-pressed", String(pressed));
      made.addEventListener("click", () => { act(); bar(figure, state); draw(figure, state); });
      place.append(made);
    };
    const views = layers(figure);
    if (views.length > 1) {
      views.forEach((one, n) => button(one.dataset.name, one.dataset.told, n === state.layer, () => {
        state.layer = n;
        state.pinned = null;
      }));
    }
    Object.keys(state.data.scores).forEach((name) => button(name, "colour patches by it", state.map === name, () => {
      state.map = state.map === name ? null : name;
    }));
  };

  const colour = (share) => {
    const at = Math.sqrt(share) * (ramp.length - 1); // scores span orders of magnitude
    const low = Math.min(Math.floor(at), ramp.length - 2);
    return `rgb(${ramp[low].map((c, n) => Math.round(c + (ramp[low + 1][n] - c) * (at - low))).join(",")})`;
  };

  const draw = (figure, state) => {
    layers(figure).forEach((one, n) => { one.toggleAttribute("hidden", n !== state.layer); });
    const map = figure.querySelector(".fv-map");
    map.replaceChildren();
    if (state.map !== null) {
      const values = state.data.scores[state.map];
      const known = values.filter((value) => value !== null);
      const low = known.reduce((one, other) => Math.min(one, other), Infinity);
      const high = known.reduce((one, other) => Math.max(one, other), -Infinity);
      // Values that hardly differ are not stretched over all colours.
      const wide = Math.max(high - low, 0.1 * Math.max(Math.abs(low), Math.abs(high))) || 1;
      const least = wide > high - low ? (low + high - wide) / 2 : low;
      const views = viewsOf(figure, state);
      // Views lie over each other: the finer ones, which come later, on top.
      values.forEach((value, n) => {
        if (value === null || !views.has(state.data.view[n])) return;
        const rect = document.createElementNS(svg, "rect");
        place(rect, state, n);
        rect.setAttribute("fill", colour((value - least) / wide));
        map.append(rect);
      });
    }
    tell(figure, state, state.pinned);
  };

  const place = (rect, state, n) => {
    const [x0, y0, x1, y1] = state.data.boxes.slice(4 * n, 4 * n + 4);
    rect.setAttribute("x", x0);
    rect.setAttribute("y", y0);
    rect.setAttribute("width", x1 - x0);
    rect.setAttribute("height", y1 - y0);
  };

  // The patch under the pointer: of several views the finest, where it is shown.
  const patchAt = (figure, state, event) => {
    const picture = figure.querySelector("svg");
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    const views = viewsOf(figure, state);
    const boxes = state.data.boxes;
    let found = null;
    for (let n = 0; n < state.data.view.length; n += 1) {
      if (!views.has(state.data.view[n])) continue;
      const [x0, y0, x1, y1] = [boxes[4 * n], boxes[4 * n + 1], boxes[4 * n + 2], boxes[4 * n + 3]];
      if (at.x >= x0 && at.x < x1 && at.y >= y0 && at.y < y1) {
        if (found === null || state.kept.has(n) || !state.kept.has(found)) found = n;
      }
    }
    return found;
  };

  const tell = (figure, state, n) => {
    const here = figure.querySelector(".fv-here");
    const told = figure.querySelector(".fv-patch");
    here.toggleAttribute("hidden", n === null);
    told.replaceChildren();
    if (n === null) {
      told.textContent = "Point at a patch for its scores; click to hold it.";
      return;
    }
    place(here, state, n);
    const data = state.data;
    const view = data.view[n] === 0 ? "base view" : `crop ${data.view[n]}`;
    const fate = state.missing.has(n) ? "not encoded" : state.kept.has(n) ? "kept" : "dropped";
    const head = document.createElement("b");
    head.textContent = fate;
    told.append(head, ` · ${view}, row ${data.row[n] + 1}, column ${data.column[n] + 1}`);
    Object.entries(data.scores).forEach(([name, values]) => {
      if (values[n] === null) return;
      const rank = 1 + values.filter((value) => value !== null && value > values[n]).length;
      told.append(document.createElement("br"), `${name} ${values[n]} · rank ${rank} of ${values.length}`);
    });
    if (data.words && data.word[n] >= 0) {
      const word = document.createElement("b");
      word.textContent = `“${data.words[data.word[n]]}”`;
      told.append(document.createElement("br"), "pointed at most by ", word, ` (${data.strength[n]})`);
    }
  };

  const figureOf = (event) => {
    const picture = event.target.closest && event.target.closest(".fv-figure svg");
    return picture ? picture.closest(".fv-figure") : null;
  };
  document.addEventListener("pointermove", (event) => {
    const figure = figureOf(event);
    if (!figure) return;
    const state = stateOf(figure);
    if (state.pinned === null) tell(figure, state, patchAt(figure, state, event));
  });
  document.addEventListener("click", (event) => {
    const figure = figureOf(event);
    if (!figure) return;
    const state = stateOf(figure);
    const n = patchAt(figure, state, event);
    state.pinned = n === state.pinned ? null : n;
    tell(figure, state, n);
  });
  const find = () => document.querySelectorAll(".fv-figure").forEach((one) => {
    if (!states.has(one) || states.get(one).given !== one.dataset.fv) draw(one, stateOf(one));
  });
  new MutationObserver(find).observe(document, { childList: true, subtree: true });
  find();
})();

"use strict";
// Draws the charts and maps of the page. Texts of strangers (names of runs, classes, files) are set as
// text, never as HTML; Plotly reads a little HTML in its own texts, so those are escaped.

const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const coarse = matchMedia("(pointer: coarse)").matches;
const config = { displayModeBar: false, responsive: true };
const root = document.documentElement; // with the class printing it has light colours

const css = name => getComputedStyle(root).getPropertyValue(name).trim();
const escaped = text => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const colour = (number, count) =>
  count <= 10 ? css(`--c${number % 10}`) : `hsl(${(number * 137.508) % 360} 62% ${dark.matches && !root.classList.contains("printing") ? 66 : 44}%)`;

function made(tag, parent, name, text) {
  const element = parent.appendChild(document.createElement(tag));
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function layout(more) {
  const axis = {
    gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), tickfont: { size: 11 }, fixedrange: true,
    automargin: true, nticks: 6,
  };
  const { xaxis, yaxis, ...rest } = more;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 42, r: 12, t: 8, b: 34 },
    font: { family: "system-ui, sans-serif", size: 12, color: css("--quiet") }, showlegend: false,
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink"), size: 12 }, namelength: 28 },
    xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...rest,
  };
}

// ── curves ─────────────────────────────────────────────────────────────────────────────────────────

function charts() {
  const found = new Map();
  data.runs.forEach((run, number) => run.curves.forEach(series => {
    if (!found.has(series.key)) found.set(series.key, []);
    found.get(series.key).push({ ...series, run: run.name, number });
  }));
  return found;
}

function drawCurves() {
  const box = document.getElementById("charts");
  if (!box) return;
  const across = document.querySelector("#across input:checked").value;
  for (const [key, lines] of charts()) {
    let plot = box.querySelector(`[data-key="${key}"]`);
    if (!plot) {
      const figure = made("figure", box, "chart");
      made("figcaption", figure, "", lines[0].name);
      plot = made("div", figure);
      plot.dataset.key = key;
    }
    const format = lines[0].share ? ".1%" : ".4~g";
    const traces = lines.map(line => ({
      x: line[across], y: line.value, name: escaped(line.run), type: "scatter",
      mode: line.evaluation || line.step.length < 3 ? "lines+markers" : "lines",
      line: { color: colour(line.number % 9, 9), width: 1.8, dash: ["solid", "dash", "dot"][Math.floor(line.number / 9) % 3] },
      marker: { size: 6 }, hovertemplate: `%{y:${format}}<extra>${data.runs.length > 1 ? escaped(line.run) : ""}</extra>`,
    }));
    Plotly.react(plot, traces, layout({
      hovermode: "x unified", dragmode: false,
      xaxis: { title: { text: across, font: { size: 11 }, standoff: 4 }, hoverformat: ",.0f", rangemode: "tozero" },
      yaxis: { tickformat: lines[0].share ? ".0%" : key === "learning_rate" ? ".1e" : "~s", rangemode: lines[0].share ? "tozero" : "normal" },
    }), config);
  }
}

// ── maps ───────────────────────────────────────────────────────────────────────────────────────────

const tip = document.getElementById("tip");

function showTip(map, place, event) {
  const { address, columns, size } = data.sprites[map.sprite];
  const picture = tip.querySelector("i"), zoom = 96 / size;
  const rows = Math.ceil(map.name.length / columns);
  Object.assign(picture.style, {
    width: "96px", height: "96px", backgroundImage: `url(${address})`,
    backgroundSize: `${columns * 96}px ${rows * 96}px`,
    backgroundPosition: `${-(place % columns) * size * zoom}px ${-Math.floor(place / columns) * size * zoom}px`,
  });
  const label = map.classes[map.label[place]];
  tip.querySelector("span").textContent = [label, map.name[place]].filter(Boolean).join("\n");
  tip.hidden = false;
  const { clientX: x, clientY: y } = event.touches ? event.touches[0] : event;
  const left = x + 16 + tip.offsetWidth < innerWidth ? x + 16 : x - 16 - tip.offsetWidth;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, Math.min(y - 40, innerHeight - tip.offsetHeight - 8))}px`;
}

function prepareMap(box) {
  const map = data.maps[box.dataset.map], kinds = Object.keys(map.maps);
  const state = { kind: kinds[kinds.length - 1], hidden: new Set() };
  if (kinds.length > 1) {
    const switches = made("fieldset", box, "switch");
    made("legend", switches, "", "by");
    for (const kind of kinds) {
      const label = made("label", switches), input = made("input", label);
      Object.assign(input, { type: "radio", name: `map${box.dataset.map}`, value: kind, checked: kind === state.kind });
      made("span", label, "", kind);
      input.addEventListener("change", () => { state.kind = kind; draw(); });
    }
  }
  const plot = made("div", box, "plot");
  const labels = Object.keys(map.classes).map(Number);
  const groups = labels.length ? labels : [-1];
  if (map.label.includes(-1) && labels.length) groups.push(-1);
  const places = new Map(groups.map(label => [label, []]));
  map.label.forEach((label, place) => places.get(label).push(place));
  const buttons = new Map();
  if (labels.length > 1) {
    const legend = made("div", box, "legend");
    for (const label of groups) {
      const button = made("button", legend);
      made("i", button, "dot");
      made("span", button, "", map.classes[label] ?? "without a label");
      button.setAttribute("aria-pressed", "true");
      // A click shows a class alone; another one adds to it; the last one brings all back.
      button.addEventListener("click", () => {
        if (!state.hidden.size) groups.forEach(each => state.hidden.add(each));
        state.hidden.has(label) ? state.hidden.delete(label) : state.hidden.add(label);
        if (state.hidden.size === groups.length) state.hidden.clear();
        draw();
      });
      buttons.set(label, button);
    }
  }
  const own = (label, number) => label < 0 && labels.length ? css("--quiet") : colour(number, groups.length);

  function draw() {
    groups.forEach((label, number) => {
      const button = buttons.get(label);
      if (!button) return;
      button.setAttribute("aria-pressed", String(!state.hidden.has(label)));
      button.firstChild.style.setProperty("--own", own(label, number));
    });
    const { x, y } = map.maps[state.kind];
    const traces = groups.map((label, number) => ({
      x: places.get(label).map(place => x[place]), y: places.get(label).map(place => y[place]),
      customdata: places.get(label), visible: !state.hidden.has(label), type: "scatter", mode: "markers",
      hoverinfo: "none", marker: { size: map.name.length > 1000 ? 5 : 7, color: own(label, number), opacity: .8, line: { width: 0 } },
    }));
    const linear = state.kind === "PCA";
    const axis = number => ({
      showgrid: linear, showline: false, showticklabels: false, ticks: "", fixedrange: coarse,
      title: { text: linear ? `component ${number + 1}: ${(100 * map.shares[number]).toFixed(0)} % of the variance` : "", font: { size: 11 } },
    });
    Plotly.react(plot, traces, layout({
      hovermode: "closest", hoverdistance: 12, dragmode: coarse ? false : "zoom", uirevision: state.kind,
      margin: { l: linear ? 30 : 8, r: 8, t: 8, b: linear ? 30 : 8 },
      xaxis: axis(0), yaxis: { ...axis(1), ...(linear ? {} : { scaleanchor: "x" }) },
    }), config);
    if (!plot.dataset.ready) {
      plot.dataset.ready = "yes";
      const show = event => showTip(map, event.points[0].customdata, event.event);
      plot.on("plotly_hover", show);
      plot.on("plotly_click", show);
      plot.on("plotly_unhover", () => { tip.hidden = true; });
    }
  }
  return draw;
}

// ── all of it ──────────────────────────────────────────────────────────────────────────────────────

async function loadPlotly() {
  const holder = document.getElementById("plotly"), text = atob(holder.textContent);
  const bytes = Uint8Array.from(text, letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  holder.remove();
}

loadPlotly().then(() => {
  const maps = [...document.querySelectorAll(".map")].map(prepareMap);
  const draw = () => { drawCurves(); maps.forEach(each => each()); };
  draw();
  document.getElementById("across")?.addEventListener("change", drawCurves);
  dark.addEventListener("change", draw);
  addEventListener("beforeprint", () => { root.classList.add("printing"); draw(); });
  addEventListener("afterprint", () => { root.classList.remove("printing"); draw(); });
  // In a folded part there is no size to draw for.
  document.addEventListener("toggle", event => {
    if (event.target.open) event.target.querySelectorAll(".plot").forEach(plot => Plotly.Plots.resize(plot));
  }, true);
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.body.dataset.drawn = "yes";
}).catch(error => {
  for (const box of document.querySelectorAll("#charts, .map")) {
    box.textContent = `The charts cannot be drawn: ${error.message}. They need a browser of 2023 or later.`;
  }
});

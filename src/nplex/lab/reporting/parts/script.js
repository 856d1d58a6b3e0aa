"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const OPTIONS = { displayModeBar: false, responsive: true };
  const rules = [...new Set(data.lines.map((line) => line.rule))];
  const colour = (rule) => COLOURS[rules.indexOf(rule) % COLOURS.length];
  const named = (rule) => {
    const [n, rank] = rule.split(":");
    return /^\d+$/.test(n) ? (rank ? `n = ${n}, rank ${rank}` : `n = ${n}`) : rule;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function layout(more) {
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
    const { xaxis, yaxis, ...others } = more;
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 340,
      font: { color: css("--ink"), family: "system-ui, sans-serif", size: 13 },
      margin: { l: 56, r: 12, t: 24, b: 48 }, legend: { orientation: "h", y: 1.04, yanchor: "bottom", x: 0 },
      xaxis: { ...axis, ...xaxis }, yaxis: { ...axis, ...yaxis }, ...others,
    };
  }

  function drawScores() {
    const traces = data.lines.map((line) => ({
      x: [line.parameters], y: [line.score], name: named(line.rule), mode: "markers",
      marker: { size: 11, color: colour(line.rule) },
      error_y: { type: "data", symmetric: false, array: [line.high - line.score], arrayminus: [line.score - line.low] },
      hovertemplate: `${named(line.rule)}<br>%{x:,} parameters<br>%{y:.${data.digits}f}<extra></extra>`,
    }));
    const sizes = data.lines.map((line) => line.parameters);
    const xaxis = { ...sizeScale(Math.min(...sizes), Math.max(...sizes)), title: { text: "parameters of the converted layers" } };
    Plotly.react("scores", traces, layout({ xaxis, yaxis: { title: { text: data.score } } }), OPTIONS);
  }

  // A logarithmic axis has too few ticks where sizes are close, and a point alone is named by itself.
  function sizeScale(least, most) {
    if (least === most) return { type: "linear", tickvals: [least], tickformat: "," };
    return most < 4 * least ? { type: "linear", tickformat: "~s" } : { type: "log", dtick: "D2", tickformat: "~s" };
  }

  function curve(run, x, y) {
    const sameRule = data.curves.filter((other) => other.rule === run.rule).indexOf(run);
    return {
      x, y, name: run.label, mode: x.length > 1 ? "lines" : "markers", hovertemplate: "%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
      line: { color: colour(run.rule), dash: DASHES[sameRule % DASHES.length], width: 2 }, marker: { color: colour(run.rule) },
    };
  }

  const WINDOWS = 12;  // the loss of single steps is noisy: each point is the mean of a 12th of them, around it

  function smooth(values) {
    const reach = Math.floor(values.length / WINDOWS / 2);
    return values.map((_, at) => {
      const near = values.slice(Math.max(0, at - reach), at + reach + 1).filter((value) => value !== null);
      return near.length ? near.reduce((sum, value) => sum + value, 0) / near.length : null;
    });
  }

  function drawCurves() {
    get("curves").hidden = !data.curves.length;
    if (!data.curves.length) return;
    const key = Object.keys(data.curves[0].history[0] || {}).find((name) => name !== "epoch" && name !== "loss");
    const epochs = (run) => run.history.map((entry) => entry.epoch);
    const bySteps = data.curves.every((run) => run.steps.length > 1);
    const losses = data.curves.map((run) => (bySteps
      ? curve(run, run.steps, smooth(run.losses))
      : curve(run, epochs(run), run.history.map((entry) => entry.loss))));
    const titled = (text) => ({ title: { text } });
    const longest = Math.max(...data.curves.map((run) => run.history.length));
    const whole = longest <= 12 ? { dtick: 1 } : {};
    const legend = { showlegend: data.curves.length <= 8 };
    Plotly.react("loss", losses, layout({ ...legend, xaxis: titled(bySteps ? "step" : "epoch"), yaxis: titled("loss, nats") }), OPTIONS);
    get("loss-caption").textContent = bySteps ? "Training loss, a running mean over steps." : "Training loss of each epoch.";
    const dev = data.curves.map((run) => curve(run, epochs(run), run.history.map((entry) => entry[key])));
    Plotly.react("dev", dev, layout({ ...legend, xaxis: { ...titled("epoch"), ...whole }, yaxis: titled(key) }), OPTIONS);
    get("dev-caption").textContent = `${key} on the dev part, after each epoch. Colours are rules, dashes seeds.`;
  }

  function unpacked(layer) {
    const bytes = Uint8Array.from(atob(layer.numbers), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer), values = new Float64Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) values[i] = view.getInt16(2 * i, true) * layer.scale;
    return values;
  }

  function columnsOf(n, most) {  // as many faces side by side as fit, all rows alike if n allows it
    const fit = Math.max(1, Math.min(n, most));
    for (let columns = fit; columns > 1; columns--) if (n % columns === 0) return columns;
    return fit;
  }

  let shown = null;  // the layer that is shown, and its numbers

  function faces(element, epoch) {
    const { layer, values, largest } = shown;
    const n = layer.n, first = epoch * n * n * n;
    const columns = columnsOf(n, Math.floor((element.clientWidth - 60) / Math.max(n * 17 + 12, 92)));
    const rows = Math.ceil(n / columns), step = n + 1;
    const z = [], text = [], notes = [];
    for (let row = 0; row < rows * step - 1; row++) {
      z.push(new Array(columns * step - 1).fill(null));
      text.push(new Array(columns * step - 1).fill(""));
    }
    for (let k = 0; k < n; k++) {
      const top = Math.floor(k / columns) * step, left = (k % columns) * step;
      notes.push({ x: left + (n - 1) / 2, y: top - 0.95, text: `rule[${k}]`, showarrow: false, font: { size: 11 } });
      for (let a = 0; a < n; a++) for (let b = 0; b < n; b++) {
        const value = values[first + (k * n + a) * n + b];
        z[top + a][left + b] = value;
        text[top + a][left + b] = `rule[${k}, ${a}, ${b}] = ${value.toFixed(3)}`;
      }
    }
    const middle = dark.matches ? "#20262e" : "#f7f7f7";
    const scale = dark.matches ? [[0, "#ff9e64"], [0.5, middle], [1, "#6cb6ff"]] : [[0, "#b2400a"], [0.5, middle], [1, "#08519c"]];
    const trace = {
      type: "heatmap", z, text, hoverinfo: "text", zmin: -largest, zmax: largest, colorscale: scale, xgap: 1, ygap: 1,
      hoverongaps: false, colorbar: { thickness: 10, len: 0.9, outlinewidth: 0 },
    };
    const plain = { visible: false, fixedrange: true };
    const cell = Math.min(46, (element.clientWidth - 90) / (columns * step));
    const height = Math.round(cell * (rows * step + 0.8)) + 16;
    Plotly.react(element, [trace], layout({
      height, margin: { l: 4, r: 4, t: 4, b: 4 }, annotations: notes, xaxis: { ...plain, constrain: "domain" },
      yaxis: { ...plain, range: [rows * step - 1.2, -1.6], scaleanchor: "x", constrain: "domain" },
    }), OPTIONS);
  }

  function drawRules() {
    if (!shown) return;
    const { layer, values, largest } = shown, at = Number(get("epoch").value), n = layer.n, size = n * n * n;
    const epoch = layer.epochs[at];
    faces(get("before"), 0);
    faces(get("after"), at);
    let moved = 0, norm = 0;
    for (let i = 0; i < size; i++) {
      moved += (values[at * size + i] - values[i]) ** 2;
      norm += values[i] ** 2;
    }
    const share = norm > 0 ? (100 * Math.sqrt(moved / norm)).toFixed(1) : "0";
    get("epoch-value").textContent = String(epoch);
    get("epoch").setAttribute("aria-valuetext", `epoch ${epoch}`);
    get("after-caption").textContent = epoch === 0 ? "Before training." : `After epoch ${epoch}.`;
    get("told").textContent = `${layer.name}: after epoch ${epoch} the table has moved by ${share} % of its first size; colours reach ${largest.toFixed(3)}.`;
    const [first, last] = layer.identified || [];
    get("identified").hidden = !first;
    get("identified").textContent = first === last ? `Up to changes of basis: ${first}.` : `Up to changes of basis, at first: ${first}; at the end: ${last}.`;
    const lines = [];
    for (let k = 0; k < n; k++) {
      lines.push(`rule[${k}]`);
      for (let a = 0; a < n; a++) {
        const row = Array.from({ length: n }, (_, b) => values[at * size + (k * n + a) * n + b].toFixed(3).padStart(7));
        lines.push(row.join(" "));
      }
    }
    get("numbers").textContent = lines.join("\n");
  }

  function choose() {
    const run = data.rules[Number(get("run").value)], layer = run.layers[Number(get("layer").value)];
    const values = unpacked(layer);
    shown = { layer, values, largest: values.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9) };
    get("epoch").max = String(layer.epochs.length - 1);
    get("epoch").value = get("epoch").max;
    drawRules();
  }

  function options(select, texts) {
    select.replaceChildren(...texts.map((text, number) => new Option(text, String(number))));
  }

  function listLayers() {
    options(get("layer"), data.rules[Number(get("run").value)].layers.map((layer) => layer.name || "the whole model's"));
    choose();
  }

  function draw() { drawScores(); drawCurves(); drawRules(); }

  if (data.rules.length) {
    options(get("run"), data.rules.map((run) => run.run));
    get("run").addEventListener("change", listLayers);
    get("layer").addEventListener("change", choose);
    get("epoch").addEventListener("input", drawRules);
    get("controls").addEventListener("submit", (event) => event.preventDefault());
    listLayers();
  } else {
    get("rules").hidden = true;
  }
  draw();
  dark.addEventListener("change", draw);
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawRules, 150); });
  document.documentElement.dataset.ready = "yes";
})();

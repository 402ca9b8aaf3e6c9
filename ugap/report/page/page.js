"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const many = data.runs.length > 1;
  const HUMAN = "human";

  // What a person reads never becomes markup: text goes into text nodes, and into plots with its signs escaped.
  const make = (tag, fields = {}, ...inside) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(fields)) {
      if (name === "class") node.className = value;
      else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value);
    }
    node.append(...inside);
    return node;
  };
  const label = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, most = 26) => (text.length > most ? "…" + text.slice(1 - most) : text);
  const unique = (values) => [...new Set(values)];
  const fixed = (value, places) => (value === null ? "–" : (Number(value.toFixed(places)) + 0).toFixed(places).replace("-", "−"));
  const reads = (scorer) => (scorer === "self" ? "each model itself" : scorer);
  const runName = (run) => (many ? `${data.runs[run].name}: ` : "");

  // The rows of the table by name of their column.
  const rows = data.rows.map((row) => Object.fromEntries(data.columns.map((name, i) => [name, row[i]])));

  function options(select, values, words = (value) => value) {
    select.replaceChildren(...values.map((value) => make("option", { value }, words(value))));
  }

  function segments(host, values, words, change) {
    const pick = (value, focus) => {
      for (const button of host.children) {
        const on = button.value === value;
        button.setAttribute("aria-checked", on);
        button.tabIndex = on ? 0 : -1;
        if (on && focus) button.focus();
      }
      change(value);
    };
    host.replaceChildren(...values.map((value) =>
      make("button", { type: "button", role: "radio", value, onclick: () => pick(value) }, words(value))));
    host.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const place = values.indexOf(document.activeElement.value);
      pick(values[(place + step + values.length) % values.length], true);
    });
    pick(values[0]);
  }

  // Theme

  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const palette = () => isDark()
    ? { ink: "#ece8e1", soft: "#a5a09a", grid: "#2c3139", card: "#1b1e24", human: "#f6f2ea", band: "rgba(246,242,234,.13)" }
    : { ink: "#1d1b18", soft: "#66605a", grid: "#ebe7df", card: "#ffffff", human: "#161412", band: "rgba(22,20,18,.10)" };
  const lightened = { "#0072b2": "#5cb8f0", "#d55e00": "#ff8f3f", "#009e73": "#3fd0a4" };
  const domainColour = (domain) => (isDark() && lightened[data.domains[domain]]) || data.domains[domain];
  const colour = (series) => (series === HUMAN ? palette().human : data.colours[series][Number(isDark())]);
  $("theme").addEventListener("click", () => {
    const next = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("ugap-theme", next); } catch { /* storage is off */ }
    redraw();
  });
  system.addEventListener("change", redraw);

  // Plots are drawn when they come near the window, and again when something about them changes.

  const drawings = new Map();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const drawing = drawings.get(entry.target);
      if (!drawing) continue;
      drawing.near = entry.isIntersecting;
      if (drawing.near && drawing.stale) draw(entry.target);
    }
  }, { rootMargin: "400px" });

  function draw(host) {
    const drawing = drawings.get(host);
    drawing.stale = false;
    const { traces, layout } = drawing.figure();
    const p = palette();
    const axis = { gridcolor: p.grid, linecolor: p.grid, zeroline: false, automargin: true, tickfont: { color: p.soft },
      title: { font: { color: p.soft, size: 12.5 }, standoff: 10 } };
    const merged = (own = {}) => ({ ...axis, ...own, title: { ...axis.title, ...own.title } });
    const family = getComputedStyle(document.body).fontFamily;
    const coarse = matchMedia("(pointer: coarse)").matches;
    Plotly.react(host, traces, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      margin: { l: 8, r: 14, t: 12, b: 8 }, dragmode: coarse ? false : "zoom",
      font: { family, size: 12.5, color: p.ink },
      hoverlabel: { bgcolor: p.card, bordercolor: p.grid, font: { family, color: p.ink, size: 12.5 }, align: "left" },
      ...layout, xaxis: merged(layout.xaxis), yaxis: merged(layout.yaxis),
    }, { displayModeBar: false, responsive: true, doubleClick: "reset" });
  }

  function plots(host, entries) {
    for (const old of host.querySelectorAll(".plot")) {
      seen.unobserve(old);
      drawings.delete(old);
      if (old.data) Plotly.purge(old);
    }
    host.replaceChildren(...entries.map(({ title, note, height, describe, figure }) => {
      const plot = make("div", { class: "plot", role: "img", "aria-label": describe });
      plot.style.height = `${height}px`;
      drawings.set(plot, { figure, stale: true, near: false });
      return make("figure", {}, make("figcaption", {}, title, ...(note ? [make("small", {}, ` ${note}`)] : [])), plot);
    }));
    for (const plot of host.querySelectorAll(".plot")) seen.observe(plot);
    if (!entries.length) host.append(make("p", { class: "empty" }, "Nothing to show."));
  }

  function redraw() {
    for (const [host, drawing] of drawings) {
      drawing.stale = true;
      if (drawing.near) draw(host);
    }
    gapKeys();
    seriesChips();
    showItem();
    tableRows();
  }

  // The gap

  const measures = Object.keys(data.measures).filter((name) => rows.some((row) => row.measure === name));
  const heading = (name) => `${data.measures[name].title} (${data.measures[name].unit})`;
  const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross"];
  const domains = Object.keys(data.domains);
  const shape = {
    circle: "M5 1a4 4 0 1 0 .01 0z", square: "M1.5 1.5h7v7h-7z", diamond: "M5 .2 9.8 5 5 9.8.2 5z",
    "triangle-up": "M5 .8 9.6 9H.4z", "triangle-down": "M5 9.2.4 1h9.2z", cross: "M3.5 0h3v3.5H10v3H6.5V10h-3V6.5H0v-3h3.5z",
  };
  const symbol = (domain) => symbols[domains.indexOf(domain) % symbols.length];
  function vector(tag, fields, ...inside) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(fields)) node.setAttribute(name, value);
    node.append(...inside);
    return node;
  }
  function gapKeys() {
    $("gap-keys").replaceChildren(...domains.map((domain) => make("span", {},
      vector("svg", { viewBox: "0 0 10 10", width: 12, height: 12, "aria-hidden": "true" },
        vector("path", { d: shape[symbol(domain)], fill: domainColour(domain) })), `${domain} text`)));
  }

  function gapPlots() {
    const measure = $("gap-measure").value;
    const words = data.measures[measure];
    const shown = rows.filter((row) => row.measure === measure && row.gap !== null && row.scorer === $("gap-scorer").value);
    $("gap-unit").textContent = words ? `Unit: ${words.unit}.` : "";
    $("gap-sides").textContent = words ? `← ${words.model_higher} · ${words.human_higher} →` : "";
    const bySeries = Object.create(null); // a series may be called "constructor"
    for (const row of shown) (bySeries[row.series] ??= []).push(row.gap);
    const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
    const order = Object.keys(bySeries).sort((a, b) => mean(bySeries[a]) - mean(bySeries[b]));
    const ends = shown.flatMap((row) => [0, row.gap, row.low ?? row.gap, row.high ?? row.gap]);
    const [low, high] = [Math.min(0, ...ends), Math.max(0, ...ends)];
    const pad = 0.07 * (high - low) || 0.1;
    const groups = {};
    for (const row of shown) (groups[JSON.stringify([row.run, row.writer])] ??= []).push(row);
    plots($("gap-plots"), Object.entries(groups).map(([key, group]) => {
      const [run, writer] = JSON.parse(key);
      const lines = order.filter((series) => group.some((row) => row.series === series));
      const own = domains.filter((domain) => group.some((row) => row.domain === domain));
      return {
        title: runName(run) + writer,
        note: `read by ${$("gap-scorer").value === "self" ? "itself" : $("gap-scorer").value}`,
        height: 74 + lines.length * Math.max(34, 20 * own.length + 8),
        describe: `Gap of ${writer} by decoding and domain; the numbers are in the table below`,
        figure: () => ({
          traces: own.map((domain, i) => {
            const part = group.filter((row) => row.domain === domain);
            const places = words.decimals > 2 ? 2 : 1;
            return {
              type: "scatter", mode: "markers", name: label(domain),
              x: part.map((row) => row.gap),
              y: part.map((row) => lines.indexOf(row.series) - (i - (own.length - 1) / 2) * (0.64 / own.length)),
              marker: {
                symbol: symbol(domain), size: 10, color: part.map((row) => (row.verdict ? domainColour(domain) : palette().card)),
                line: { width: 2, color: domainColour(domain) },
              },
              error_x: {
                type: "data", symmetric: false, thickness: 2.4, width: 0, color: domainColour(domain),
                array: part.map((row) => (row.high === null ? 0 : row.high - row.gap)),
                arrayminus: part.map((row) => (row.low === null ? 0 : row.gap - row.low)),
              },
              text: part.map((row) => [
                `<b>${label(row.series)}</b>, ${label(domain)} text`,
                `gap ${fixed(row.gap, places)} [${fixed(row.low, places)}, ${fixed(row.high, places)}]`,
                `people ${fixed(row.human, places)}, model ${fixed(row.model_value, places)}, ratio ${fixed(row.ratio, 2)}`,
                `${row.n} prefixes of ${row.n_sources} source texts`,
              ].join("<br>")),
              hovertemplate: "%{text}<extra></extra>",
            };
          }),
          layout: {
            hovermode: "closest",
            xaxis: { range: [low - pad, high + pad], title: { text: `gap, ${words.unit}` } },
            yaxis: {
              range: [-0.55, lines.length - 0.45], tickvals: lines.map((_, i) => i), showgrid: false, fixedrange: true,
              ticktext: lines.map((name) => label(short(name))), tickfont: { color: palette().ink }, ticklen: 0,
            },
            shapes: [
              ...lines.map((_, i) => ({ type: "rect", xref: "paper", x0: 0, x1: 1, y0: i - 0.5, y1: i + 0.5, layer: "below",
                line: { width: 0 }, fillcolor: palette().grid, opacity: i % 2 ? 0 : 0.42 })),
              { type: "line", yref: "paper", x0: 0, x1: 0, y0: 0, y1: 1, line: { color: palette().ink, width: 1.4 } },
            ],
            annotations: [{ x: 0, y: 1, yref: "paper", yanchor: "bottom", text: "human level", showarrow: false,
              font: { size: 11, color: palette().soft } }],
            margin: { l: 8, r: 14, t: 24, b: 8 },
          },
        }),
      };
    }));
    gapKeys();
  }

  options($("gap-measure"), measures, heading);
  options($("gap-scorer"), unique(rows.map((row) => row.scorer)), reads);
  $("gap-scorer-label").hidden = $("gap-scorer").options.length < 2;
  $("gap-measure").addEventListener("change", gapPlots);
  $("gap-scorer").addEventListener("change", gapPlots);
  gapPlots();

  // Curves of tokens

  const hidden = new Set();
  const writers = unique(data.panels.map((panel) => JSON.stringify([panel.run, panel.writer, panel.scorer])));
  let distribution = "nll";
  const writerName = (key) => {
    const [run, writer, scorer] = JSON.parse(key);
    return `${runName(run)}${writer}${scorer === "self" ? "" : `, read by ${scorer}`}`;
  };
  const current = () => data.panels.filter((panel) =>
    JSON.stringify([panel.run, panel.writer, panel.scorer]) === $("writer").value);
  const names = () => {
    const all = unique(current().flatMap((panel) => Object.keys(panel.distributions.nll.series)));
    const order = [HUMAN, ...Object.keys(data.colours)];
    return all.sort((a, b) => order.indexOf(a) - order.indexOf(b));
  };
  const series = (of) => names().filter((name) => of[name] && !hidden.has(name)).reverse();
  const called = (name) => (name === HUMAN ? "people" : name);
  const line = (name) => ({ color: colour(name), width: name === HUMAN ? 4 : 2 });

  function seriesChips() {
    $("series").replaceChildren(...names().map((name) => {
      const swatch = make("i");
      swatch.style.setProperty("--own", colour(name));
      return make("button", {
        type: "button", "aria-pressed": !hidden.has(name), "data-series": name, class: name === HUMAN ? "people" : "",
        onclick: () => {
          if (!hidden.delete(name)) hidden.add(name);
          for (const [host, drawing] of drawings) if (!$("gap-plots").contains(host)) { drawing.stale = true; if (drawing.near) draw(host); }
          seriesChips();
          [...$("series").children].find((chip) => chip.dataset.series === name).focus();
        },
      }, swatch, called(name));
    }));
  }

  function distributionPlots() {
    const words = data.measures[distribution];
    const name = { nll: "surprisal", entropy: "entropy", deviation: "deviation" }[distribution];
    plots($("distribution-plots"), current().map((panel) => {
      const { x, series: curves } = panel.distributions[distribution];
      return {
        title: `${panel.domain} text`, height: 300,
        describe: `Share of tokens above x by ${name}, people and decodings, ${panel.domain} text. Means: ` +
          Object.entries(curves).map(([key, curve]) => `${called(key)} ${fixed(curve.mean, 2)}`).join(", "),
        figure: () => ({
          traces: series(curves).map((key) => ({
            type: "scatter", mode: "lines", x, y: curves[key].y, line: line(key), name: label(called(key)),
            hovertemplate: `<b>${label(called(key))}</b> %{y:.1f}%, mean ${fixed(curves[key].mean, 2)}<extra></extra>`,
          })),
          layout: {
            hovermode: "x unified",
            xaxis: { title: { text: `x: ${name}, ${words.unit === "nats per token" ? "nats" : words.unit}` }, hoverformat: ".2f" },
            yaxis: { title: { text: "tokens above x, %" }, range: [0, 101] },
          },
        }),
      };
    }));
  }

  function calibrationPlots() {
    plots($("calibration-plots"), current().map((panel) => {
      const curves = panel.calibration;
      const most = 1.05 * Math.max(1, ...Object.values(curves).flat(2));
      return {
        title: `${panel.domain} text`, height: 340,
        describe: `Mean surprisal by the scorer's entropy, people and decodings, ${panel.domain} text`,
        figure: () => ({
          traces: [
            { type: "scatter", mode: "lines", x: [0, most], y: [0, most], hoverinfo: "skip",
              line: { color: palette().soft, width: 1.3, dash: "dash" } },
            ...series(curves).map((key) => ({
              type: "scatter", mode: "lines+markers", x: curves[key][0], y: curves[key][1], line: line(key),
              marker: { size: key === HUMAN ? 9 : 6, color: colour(key) },
              hovertemplate: `<b>${label(called(key))}</b><br>entropy %{x:.2f}, surprisal %{y:.2f}<extra></extra>`,
            })),
          ],
          layout: {
            hovermode: "closest",
            xaxis: { title: { text: "h: entropy of the scorer, nats" }, range: [0, most] },
            yaxis: { title: { text: "mean surprisal, nats" }, range: [0, most] },
          },
        }),
      };
    }));
  }

  function positionPlots() {
    plots($("position-plots"), current().map((panel) => {
      const { x, width, series: curves } = panel.positions;
      const human = curves[HUMAN];
      const known = human ? x.map((_, i) => i).filter((i) => human.low?.[i] != null) : [];
      return {
        title: `${panel.domain} text`, note: width > 1 ? `bins of ${width} tokens` : "", height: 300,
        describe: `Mean surprisal over the position in the text, people and decodings, ${panel.domain} text`,
        figure: () => ({
          traces: [
            ...(known.length && !hidden.has(HUMAN) ? [
              { type: "scatter", mode: "lines", hoverinfo: "skip", line: { width: 0 }, fill: "toself", fillcolor: palette().band,
                x: [...known.map((i) => x[i]), ...known.map((i) => x[i]).reverse()],
                y: [...known.map((i) => human.high[i]), ...known.map((i) => human.low[i]).reverse()] },
            ] : []),
            ...series(curves).map((key) => ({
              type: "scatter", mode: "lines", x, y: curves[key].y, line: line(key), customdata: curves[key].n,
              hovertemplate: `<b>${label(called(key))}</b> %{y:.2f}, %{customdata} tokens<extra></extra>`,
            })),
          ],
          layout: {
            hovermode: "x unified",
            xaxis: { title: { text: "token of the continuation" }, hoverformat: ".0f" },
            yaxis: { title: { text: "mean surprisal, nats" }, rangemode: "tozero" },
          },
        }),
      };
    }));
  }

  function curvePlots() {
    seriesChips();
    distributionPlots();
    calibrationPlots();
    positionPlots();
  }

  options($("writer"), writers, writerName);
  $("writer").addEventListener("change", curvePlots);
  seriesChips();
  calibrationPlots();
  positionPlots();
  segments($("distribution"), ["nll", "entropy", "deviation"], (name) =>
    ({ nll: "Surprisal", entropy: "Entropy", deviation: "Deviation" })[name], (name) => { distribution = name; distributionPlots(); });

  // The reader

  const FIELDS = ["run", "writer", "scorer", "domain", "series", "id", "prefix", "human", "model"];
  const items = data.reader.items.map((item) => Object.fromEntries(FIELDS.map((name, i) => [name, item[i]])));
  // Full tint at `high`; a measure with a `low` end has a cold tint down to it.
  const tints = {
    s: { word: "Surprisal", unit: "nats", high: 8 },
    h: { word: "Entropy", unit: "nats", high: 6 },
    z: { word: "Deviation", unit: "standard deviations", high: 4, low: -1.5 },
    m: { word: "PMI", unit: "nats", high: 5, low: -5 },
  };
  const tintNames = Object.keys(tints).filter((name) => data.reader.texts.some((text) => text[name]));
  let tint = "s";
  let place = 0;
  const filters = [
    ["run", "Run", (value) => data.runs[value].name], ["domain", "Domain"], ["writer", "Model"], ["series", "Decoding"],
    ["scorer", "Scored by", reads],
  ].filter(([name]) => unique(items.map((item) => item[name])).length > 1);
  const selects = {};
  for (const [name, word, words = (value) => value] of filters) {
    const values = unique(items.map((item) => String(item[name])));
    const select = make("select", { id: `filter-${name}`, onchange: () => { place = 0; showItem(); } });
    options(select, ["", ...values], (value) => (value === "" ? "all" : words(value)));
    selects[name] = select;
    $("filters").append(make("label", {}, word, select));
  }
  const filtered = () => items.filter((item) =>
    Object.entries(selects).every(([name, select]) => select.value === "" || String(item[name]) === select.value));

  function paint(token, value) {
    const { high, low } = tints[tint];
    const share = value === null ? 0 : value >= 0 || low === undefined ? value / high : value / low;
    token.style.setProperty("--a", (88 * Math.min(1, Math.max(0, share))).toFixed(1));
    token.style.setProperty("--tint", value !== null && value < 0 && low !== undefined ? "var(--cold)" : "var(--hot)");
  }

  function tokens(host, text) {
    const nodes = text.lead ? [make("span", { class: "rest" }, text.lead)] : [];
    text.pieces.forEach((piece, i) => {
      const token = make("span", { class: "t", tabindex: i ? -1 : 0, "data-i": i });
      // The space before a word stays outside of the tint, or it would hang over the end of the line.
      const word = piece.trim() ? piece.replace(/^ +/, "") : piece;
      if (word.length < piece.length) nodes.push(piece.slice(0, piece.length - word.length));
      const lines = word.split("\n");
      lines.forEach((line, j) => {
        if (j) token.append(make("span", { class: "nl", "aria-hidden": "true" }, "↵"), "\n");
        token.append(line);
      });
      paint(token, hundredths(text[tint], i));
      nodes.push(token);
    });
    if (text.rest) nodes.push(make("span", { class: "rest" }, text.rest));
    host.replaceChildren(...nodes);
    host.ugap = text;
  }
  const hundredths = (values, i) => (values && values[i] !== null ? values[i] / 100 : null);

  function showItem() {
    hideTip();
    const all = filtered();
    place = Math.min(place, Math.max(0, all.length - 1));
    const item = all[place];
    $("count").textContent = item ? `${(place + 1).toLocaleString("en")} of ${all.length.toLocaleString("en")}` : "none";
    $("previous").disabled = place === 0;
    $("next").disabled = place >= all.length - 1;
    $("item").hidden = !item;
    if (!item) return;
    const [human, model] = [data.reader.texts[item.human], data.reader.texts[item.model]];
    const prefix = data.reader.prefixes[item.prefix];
    $("prefix").textContent = prefix || "(no prefix)";
    $("prefix").title = `text ${item.id}`;
    $("model-name").textContent = `${runName(item.run)}${item.writer}, ${item.series}`;
    tokens($("human"), human);
    tokens($("model"), model);
    const index = Object.keys(tints).indexOf(tint);
    for (const [id, text] of [["human-mean", human], ["model-mean", model]])
      $(id).textContent = `mean ${tints[tint].word === "PMI" ? "PMI" : tints[tint].word.toLowerCase()} ${fixed(text.means[index] ?? null, 2)}`;
    const { high, low, unit } = tints[tint];
    const bar = make("i");
    const end = (name) => `color-mix(in oklab, var(${name}) 88%, transparent)`;
    bar.style.background = `linear-gradient(90deg, ${low === undefined ? "transparent" : `${end("--cold")}, transparent`}, ${end("--hot")})`;
    $("scale").replaceChildren(low === undefined ? "0" : fixed(low, Number.isInteger(low) ? 0 : 1), bar, `${high}+ ${unit}`);
  }

  function turn(step) {
    const next = place + step;
    if (next < 0 || next >= filtered().length) return;
    place = next;
    showItem();
  }
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));

  const tip = $("tip");
  let tipped = null;
  function hideTip() {
    tip.hidden = true;
    tipped?.removeAttribute("aria-describedby");
    tipped = null;
  }
  const named = (piece) => (piece.trim() ? piece.trim() : piece.replace(/ /g, "␣")).replace(/\n/g, "↵");
  function showTip(token) {
    hideTip();
    const text = token.parentElement.ugap;
    const i = Number(token.dataset.i);
    tipped = token;
    token.setAttribute("aria-describedby", "tip");
    const entries = Object.entries(tints).filter(([name]) => text[name]).flatMap(([name, { word }]) => {
      const now = name === tint ? "now" : "";
      return [make("dt", { class: now }, word), make("dd", { class: now }, fixed(hundredths(text[name], i), 2))];
    });
    const rank = text.r[i] === null ? "–" : text.r[i].toLocaleString("en");
    tip.replaceChildren(make("b", {}, `“${named(text.pieces[i])}”`),
      make("dl", {}, ...entries, make("dt", {}, "Rank"), make("dd", {}, rank)),
      ...(text.k[i] ? [make("small", {}, `${text.k[i]} tokens; the most surprising one`)] : []));
    tip.hidden = false;
    placeTip();
  }
  function placeTip() {
    if (!tipped) return;
    const box = tipped.getClientRects()[0];
    const { offsetWidth: width, offsetHeight: height } = tip;
    tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - width - 8))}px`;
    tip.style.top = `${box.bottom + height + 14 < innerHeight ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
  }
  for (const host of [$("human"), $("model")]) {
    host.addEventListener("pointerover", (event) => { const token = event.target.closest(".t"); if (token) showTip(token); });
    host.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hideTip(); });
    host.addEventListener("focusin", (event) => showTip(event.target));
    host.addEventListener("focusout", hideTip);
    host.addEventListener("click", (event) => event.target.closest(".t")?.focus());
    host.addEventListener("keydown", (event) => {
      const all = [...host.querySelectorAll(".t")];
      const at = all.indexOf(document.activeElement);
      const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
      if (to === undefined || at < 0 || !all[to] || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      all[at].tabIndex = -1;
      all[to].tabIndex = 0;
      all[to].focus();
    });
  }
  addEventListener("scroll", placeTip, { passive: true });
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "Escape") hideTip();
    else if (event.key === "n") turn(1);
    else if (event.key === "p") turn(-1);
  });
  if (tintNames.length) segments($("tint"), tintNames, (name) => tints[name].word, (name) => { tint = name; showItem(); });
  else showItem();

  // The table

  const pValue = (p) => (p === null ? "–" : p < 0.001 ? "<0.001" : fixed(p, 3));
  const figure = (name, places) => ({ name, cell: (row) => fixed(row[name], places ?? data.measures[row.measure].decimals) });
  const columns = [
    ...(many ? [{ name: "run", title: "run", word: true, cell: (row) => data.runs[row.run].name }] : []),
    { name: "measure", title: "measure", word: true, cell: (row) => heading(row.measure), only: "" },
    { name: "domain", title: "domain", word: true },
    { name: "writer", title: "model", word: true },
    { name: "series", title: "decoding", word: true },
    ...(unique(rows.map((row) => row.scorer)).length > 1 ? [{ name: "scorer", title: "scored by", word: true, cell: (row) => reads(row.scorer) }] : []),
    { title: "people", ...figure("human") },
    { title: "model", ...figure("model_value") },
    { title: "", name: "drawn", cell: spark },
    { title: "gap [95%]", name: "gap", cell: gapCell },
    { title: "ratio", ...figure("ratio", 2) },
    { title: "d_z", ...figure("effect_size", 2) },
    { title: "p", name: "p_value", cell: (row) => pValue(row.p_value) },
    { title: "p (adjusted)", name: "p_adjusted", cell: (row) => (row.p_adjusted === null && row.gap !== null ? "cannot be significant" : pValue(row.p_adjusted)) },
    { title: "W1", ...figure("wasserstein") },
    { title: "prefixes", name: "n", cell: (row) => `${row.n} (${row.n_sources})` },
  ];
  let sort = { name: null, down: false };

  function gapCell(row) {
    if (row.gap === null) return "–";
    const places = data.measures[row.measure].decimals - 1;
    const ends = row.low === null ? "no interval" : `${fixed(row.low, places)}, ${fixed(row.high, places)}`;
    const kind = { 1: "more", "-1": "less", 0: "" }[row.verdict];
    return make("span", {}, make("span", { class: kind }, fixed(row.gap, places)), ` [${ends}]`);
  }
  // The interval as a small drawing, on one scale for a measure.
  const spans = {};
  for (const row of rows) {
    const most = Math.max(...[row.gap, row.low, row.high].map((value) => Math.abs(value ?? 0)));
    spans[row.measure] = Math.max(spans[row.measure] ?? 0, most);
  }
  function spark(row) {
    if (row.low === null) return "";
    const x = (value) => 36 + (33 * value) / (spans[row.measure] || 1);
    const ink = { 1: "var(--more)", "-1": "var(--less)", 0: "var(--soft)" }[row.verdict];
    return vector("svg", { width: 72, height: 14, viewBox: "0 0 72 14", "aria-hidden": "true" },
      vector("path", { d: "M36 0V14", stroke: "var(--line)", "stroke-width": 1.5 }),
      vector("path", { d: `M${x(row.low).toFixed(1)} 7H${x(row.high).toFixed(1)}`, stroke: ink, "stroke-width": 2 }),
      vector("circle", { cx: x(row.gap).toFixed(1), cy: 7, r: 3.2, fill: ink }));
  }

  function sorted() {
    const measure = $("table-measure").value;
    const shown = rows.filter((row) => !measure || row.measure === measure);
    if (!sort.name) return shown;
    const way = sort.down ? -1 : 1;
    return shown.sort((a, b) => {
      const [x, y] = [a[sort.name], b[sort.name]];
      if (x === null || y === null) return Number(x === null) - Number(y === null); // what is missing comes last
      return way * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
  }

  function tableRows() {
    const measure = $("table-measure").value;
    const shown = columns.filter((column) => column.only === undefined || column.only === measure);
    const focused = document.activeElement?.dataset?.sort;
    const head = shown.map((column) => {
      if (!column.title) return make("td");
      const own = sort.name === column.name;
      const button = make("button", { type: "button", "data-sort": column.name, onclick: () => {
        sort = { name: column.name, down: own ? !sort.down : !column.word };
        tableRows();
      } }, column.title);
      return make("th", { scope: "col", class: column.word ? "word" : "",
        ...(own ? { "aria-sort": sort.down ? "descending" : "ascending" } : {}) }, button);
    });
    $("rows").tHead.replaceChildren(make("tr", {}, ...head));
    $("rows").tBodies[0].replaceChildren(...sorted().map((row) => make("tr", {}, ...shown.map((column) => {
      const cell = column.cell ? column.cell(row) : row[column.name];
      return make("td", { class: column.word ? (cell.length > 24 ? "word long" : "word") : "" }, cell);
    }))));
    if (focused) $("rows").querySelector(`[data-sort="${focused}"]`)?.focus();
  }
  options($("table-measure"), [...measures, ""], (name) => (name ? heading(name) : "all measures"));
  $("table-measure").addEventListener("change", tableRows);
  tableRows();

  $("csv").addEventListener("click", () => {
    // A spreadsheet runs a cell that begins with one of these as a formula, so a name that does gets an apostrophe.
    const guarded = (value) => (/^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value);
    const quoted = (value) => (/[",\r\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
    const fields = data.columns.filter((name) => !["writer", "series"].includes(name) && (many || name !== "run"));
    const cell = (value) => (value === null ? "" : typeof value === "string" ? guarded(value) : String(value));
    const value = (row, name) => cell(name === "run" ? data.runs[row.run].name : row[name]);
    const lines = [fields, ...rows.map((row) => fields.map((name) => value(row, name)))];
    const text = lines.map((cells) => cells.map(quoted).join(",") + "\r\n").join("");
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    make("a", { href: url, download: "gap.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  });
})();

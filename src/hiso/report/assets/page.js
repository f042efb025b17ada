"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const coarse = matchMedia("(pointer: coarse)").matches;
  const config = {
    displaylogo: false,
    displayModeBar: coarse ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    responsive: true,
  };
  const axis = {
    automargin: true,
    exponentformat: "SI",
    minorloglabels: "complete",
    zeroline: false,
  };
  const font = { family: "system-ui, sans-serif", size: 13 };
  const hidden = new Set();

  const plots = [...document.querySelectorAll(".plot")];
  const figureOf = (plot) => figures[plot.dataset.figure];

  function draw(plot) {
    const { data, layout } = figureOf(plot);
    return Plotly.newPlot(plot, data, {
      dragmode: coarse ? false : "zoom", // a finger scrolls the page
      font,
      hoverdistance: 40,
      hoverlabel: { font },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "#8a8a8a", activecolor: "#0b66a8" },
      margin: { l: 56, r: 12, t: 8, b: 48 },
      legend: { bgcolor: "rgba(0,0,0,0)", orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      showlegend: false,
      ...layout,
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    }, config);
  }

  /** Shows the figures of a section as its tools say. */
  function apply(section) {
    const chosen = section.querySelector("select, input:checked");
    for (const plot of section.querySelectorAll(".plot")) {
      const { views, log } = figureOf(plot);
      const view = chosen ? views[chosen.value] : Object.values(views)[0];
      const known = view !== undefined || Object.keys(views).length === 0;
      plot.hidden = !known;
      plot.nextElementSibling.hidden = known;
      if (!known) continue;
      const layout = { ...view?.layout };
      for (const button of section.querySelectorAll("[data-log]")) {
        const name = button.dataset.log;
        if (!log.includes(name)) continue;
        layout[`${name}axis.type`] = button.ariaPressed === "true" ? "log" : "linear";
        layout[`${name}axis.dtick`] = null;
      }
      layout["xaxis.autorange"] = true;
      layout["yaxis.autorange"] = true;
      Plotly.update(plot, { ...view?.data }, layout).then(() => thin(plot));
    }
  }

  /** Labels at 1, 2, 5, 10 on a logarithmic axis that is too long for all. */
  function thin(plot) {
    for (const name of ["xaxis", "yaxis"]) {
      const { type, range } = plot.layout[name];
      if (type === "log" && range[1] - range[0] > 1) {
        Plotly.relayout(plot, { [`${name}.dtick`]: "D2" });
      }
    }
  }

  /** Shows or hides the traces of the groups that the legend says. */
  function show() {
    for (const plot of plots) {
      const traces = figureOf(plot).data.map((trace, i) => [trace.legendgroup, i]);
      const grouped = traces.filter(([group]) => group !== undefined);
      if (!grouped.length) continue;
      const visible = grouped.map(([group]) => !hidden.has(group));
      Plotly.restyle(plot, { visible }, grouped.map(([, i]) => i));
    }
    for (const button of document.querySelectorAll("[data-group]")) {
      button.ariaPressed = String(!hidden.has(button.dataset.group));
    }
  }

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("button");
    if (button?.dataset.group !== undefined) {
      const group = button.dataset.group;
      if (!hidden.delete(group)) hidden.add(group);
      show();
    } else if (button?.dataset.log) {
      button.ariaPressed = String(button.ariaPressed !== "true");
      apply(button.closest("section"));
    }
  });
  document.addEventListener("change", ({ target }) => apply(target.closest("section")));

  // Paper has another width than the window.
  function fit(size) {
    for (const plot of plots) Plotly.relayout(plot, size);
  }
  addEventListener("beforeprint", () => fit({ width: 680, height: 250 }));
  addEventListener("afterprint", () => fit({ width: null, height: null, autosize: true }));

  Promise.all(plots.map(draw)).then(() => {
    document.querySelectorAll("section").forEach(apply);
    document.body.dataset.drawn = "yes";
  });
})();

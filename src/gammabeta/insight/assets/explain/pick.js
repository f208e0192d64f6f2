/* What the reader picked: a layer, one of its channels, one of the eight values. Figures that show
   the picked channel subscribe and are called at once and after every change. */
"use strict";
const Pick = (() => {
  const layers = GB.data.layers.filter((layer) => layer.channels.length > 0);
  const picked = { layer: 0, channel: 0, value: 0 };
  const listeners = [];

  const layer = () => layers[picked.layer];
  const channel = () => layer().channels[picked.channel];
  const notify = () => listeners.forEach((listen) => listen());

  function subscribe(listen) {
    if (!layers.length) return;
    listeners.push(listen);
    listen();
  }
  function set(change) {
    if (change.layer !== undefined && change.layer !== picked.layer) picked.channel = 0;
    Object.assign(picked, change);
    notify();
  }
  /* Pick a layer by its path; false if it has no channel to show. */
  function byPath(path) {
    const at = layers.findIndex((candidate) => candidate.path === path);
    if (at >= 0) set({ layer: at });
    return at >= 0;
  }

  function fillLayers() {
    const select = GB.byId("pick-layer");
    layers.forEach((candidate, at) => {
      select.append(GB.html("option", { value: at }, candidate.path));
    });
    select.addEventListener("change", () => set({ layer: Number(select.value) }));
    const channels = GB.byId("pick-channel");
    channels.addEventListener("change", () => set({ channel: Number(channels.value) }));
    let filled = -1;
    subscribe(() => {
      if (filled !== picked.layer) {
        channels.replaceChildren(...layer().channels.map((c, at) => GB.html("option", { value: at }, channelName(c))));
        filled = picked.layer;
      }
      select.value = String(picked.layer);
      channels.value = String(picked.channel);
      const names = document.querySelectorAll(".picked");
      names.forEach((node) => { node.textContent = GB.t("pick.name", { layer: layer().path, channel: channel().index }); });
    });
  }
  const channelName = (c) => `${c.index} · γ ${GB.num(c.gamma, 3)}, β ${GB.num(c.beta, 3)}`;

  if (layers.length) fillLayers();
  return { picked, layer, channel, subscribe, set, byPath, any: layers.length > 0 };
})();

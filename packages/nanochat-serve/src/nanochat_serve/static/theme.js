// Runs before the first paint, so that a chosen theme does not flash the other one.
try {
  const theme = JSON.parse(localStorage.getItem("nanochat.theme"));
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* the system's choice stays */ }

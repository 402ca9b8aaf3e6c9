// Before the first paint: the theme that was chosen last, if the browser lets a page from disk remember it.
try {
  const chosen = localStorage.getItem("ugap-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage is off: the system's theme */ }

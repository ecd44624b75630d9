// A browser lets no page that lies on disk read the index of the search, so the button would do nothing.
if (location.protocol === "file:") document.documentElement.classList.add("from-disk")

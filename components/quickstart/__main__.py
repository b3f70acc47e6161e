"""``python -m components.quickstart``: make the quick start's data."""

from components.quickstart import main

raise SystemExit(main())

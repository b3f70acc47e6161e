"""``python -m components.cli``, where ``stlm`` is not on the path."""

from components.cli import main

raise SystemExit(main())

"""``python -m components.console``, where ``stlm`` is not on the path."""

from components.console import main

raise SystemExit(main())

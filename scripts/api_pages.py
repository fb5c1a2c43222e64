"""Write a page for every module of `interp` with pdoc: `python scripts/api_pages.py build/api`.

Fails where pdoc warns, as it does of a name in `__all__` that does not resolve.
"""

from __future__ import annotations

import pkgutil
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pdoc

import interp


def modules() -> list[str]:
    """The names of all public modules, the package first."""
    below = (module.name for module in pkgutil.walk_packages(interp.__path__, "interp."))
    return ["interp", *sorted(name for name in below if not any(part.startswith("_") for part in name.split(".")))]


def main(to: str = "build/api") -> int:
    """Write the pages; 1 where pdoc warned."""
    names = modules()
    for name in interp.__all__:  # some are imported when first asked for, and pdoc does not ask
        vars(interp).setdefault(name, getattr(interp, name))
    for name in names:  # pdoc takes no submodules but those in a package's __all__
        package, _, last = name.rpartition(".")
        public = getattr(import_module(package), "__all__", None) if package else None
        if public is not None and last not in public:
            import_module(name)
            public.append(last)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc("interp", output_directory=Path(to))
    said = [str(warning.message) for warning in caught if "pdoc" in Path(warning.filename).parts]
    missing = [name for name in names if not Path(to, *name.split(".")).with_suffix(".html").is_file()]
    said += [f"no page for {name}" for name in missing]
    sys.stderr.writelines(f"{line}\n" for line in said)
    sys.stdout.write(f"{len(names)} modules: {Path(to) / 'index.html'}\n")
    return 1 if said else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

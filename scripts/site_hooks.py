"""Which pages does the documentation site have, and where do they come from? Hooks for MkDocs (`mkdocs.yml`).

Pages are laid out in the site as in the repository, so that the links which GitHub follows hold here too. Notebooks are
shown with outputs made at build time; the reference has a page for each experiment and each part of the package. The
build fails where a page would load anything from another host.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import executed_notebooks
import griffe
import nbformat
import plotly
import site_pages
import typer
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify as slugs

import interp
from interp import catalog, gallery
from interp.cli import app

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "scripts" / "site_assets"
PROJECT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "figures/README.md")
PLOTLY = "assets/plotly.min.js"
# names there that were removed, and are documented as such
HISTORY = ("CHANGELOG.md",)
slugify = slugs(case="lower")  # as in mkdocs.yml
_outputs: dict[str, list[str]] = {}
log = logging.getLogger("mkdocs.hooks.site")


# --- the reference ----------------------------------------------------------------------------------------------------


@cache
def package() -> Any:
    """The package as griffe reads it, without running it."""
    return griffe.load("interp", search_paths=[ROOT], resolve_aliases=True)


def documented(name: str) -> bool | None:
    """Whether the reference has a dotted name: None where the package has no such name at all."""
    parts = name.split(".")
    try:
        found = package()[".".join(parts[1:])]
        shown = not any(part.startswith("_") for part in parts) and parts[1] != "cli"
        # of an experiment's modules the reference shows what they hold
        return found.has_docstring and shown and not (found.is_module and parts[1] == "experiments")
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def modules(of: Any) -> list[str]:
    """The public modules of a package, itself first."""
    below = sorted(name for name, member in of.modules.items() if not name.startswith("_") and not member.is_alias)
    return [of.path, *(name for module in below for name in modules(of.modules[module]))]


def reference(*names: str, **options: Any) -> str:
    """What mkdocstrings replaces by the documentation of these names."""
    given = "".join(f"      {key}: {str(value).lower()}\n" for key, value in options.items())
    return "\n\n".join(f"::: {name}\n" + (f"    options:\n{given}" if given else "") for name in names)


def public_names_page() -> str:
    """The page of what `interp/__init__.py` names."""
    of_kind: dict[str, list[str]] = {"function": [], "class": [], "module": [], "attribute": []}
    for name in interp.__all__:
        of_kind[package()[name].kind.value].append(f"interp.{name}")
    functions, classes, parts, others = (sorted(names) for names in of_kind.values())
    lines = [f"- [`{name}`][{name}]: {_first_line(package()[name[7:]])}" for name in (*functions, *classes, *parts)]
    # short names for hints of types
    lines += [f"- `{name}`: `{package()[name[7:]].value}`, as an experiment's hint" for name in others]
    listed = "\n".join(lines)
    return (
        "# Public names\n\n`import interp` has these names; each is loaded when it is first used. The rest is in "
        f"the [modules](modules/index.md).\n\n{listed}\n\n{reference(*functions, *classes)}\n"
    )


def _first_line(found: Any) -> str:
    return found.docstring.value.strip().split("\n\n")[0].replace("\n", " ") if found.has_docstring else ""


def module_pages() -> dict[str, str]:
    """A page for each module or package right below `interp`, and one that lists them."""
    pages, listed = {}, []
    for name, module in sorted(package().modules.items()):
        if name in ("cli", "experiments") or name.startswith("_") or module.is_alias:
            continue
        inside = modules(module)
        pages[f"reference/modules/{name}.md"] = f"# interp.{name}\n\n{reference(*inside, show_root_heading=True)}\n"
        listed.append(f"- [`interp.{name}`]({name}.md): {_first_line(module)}")
    index = "# Modules\n\nWhat each part answers; [how they fit together](../../docs/architecture.md).\n\n"
    return {"reference/modules/index.md": index + "\n".join(listed) + "\n", **pages}


def experiment_pages() -> dict[str, str]:
    """A page for each experiment, with what its view shows, and one that lists them."""
    pages, listed = {}, []
    for name in catalog.names():
        question = catalog.question(name)
        parts = package()[f"experiments.{name}"].modules
        main = f"interp.experiments.{name}.experiment.{name}"
        code = [
            main,
            *(other for part in sorted(parts) if part != "view" for other in _held(parts[part]) if other != main),
        ]
        shown = _held(parts["view"]) if "view" in parts else []
        entries = [entry for entry in gallery.entries() if entry.request and entry.request.experiment == name]
        page = f"# {name}\n\n{question}\n\n```sh\ninterp run {name}\ninterp run {name} --help\n```\n\n"
        if described(name):
            page += f"[What it measures, and how to read it](../../{described(name)}).\n\n"
        if entries:
            links = ", ".join(f"[{entry.folder}](../../figures/README.md#{entry.folder})" for entry in entries)
            page += f"In the gallery: {links}.\n\n"
        page += f"## What it computes\n\n{reference(*code, heading_level=3, show_root_full_path=False)}\n"
        if shown:
            page += f"## What it shows\n\n{reference(*shown, heading_level=3, show_root_full_path=False)}\n"
        pages[f"reference/experiments/{name}.md"] = page
        listed.append(f"- [`{name}`]({name}.md): {question}")
    index = '# Experiments\n\nEach is a function, `interp run NAME` or `interp.run("NAME", ...)`, with a view.\n\n'
    return {"reference/experiments/index.md": index + "\n".join(listed) + "\n", **pages}


@cache
def described(name: str) -> str | None:
    """Where docs/ describes an experiment: a section, or a page of its name, before the list of them all."""
    listed, own = (ROOT / "docs" / f"{stem}.md" for stem in ("experiments", name))
    others = sorted(path for path in listed.parent.glob("*.md") if path != listed)
    sections = [
        f"docs/{path.name}#{slugify(title.replace('`', ''), '-')}"
        for path in (*others, listed)
        for title in re.findall(r"^##+ (.+)$", path.read_text(encoding="utf-8"), re.M)
        if f"`{name}`" in title
    ]
    in_the_list = not sections or sections[0].startswith(f"docs/{listed.name}#")
    return f"docs/{own.name}" if own.is_file() and in_the_list else next(iter(sections), None)


def with_readings(markdown: str) -> str:
    """The gallery, with a link from each entry to how the figures of its experiment are read."""
    for entry in gallery.entries():
        if entry.request and (where := described(entry.request.experiment)):
            head = f"### {entry.folder}\n"
            markdown = markdown.replace(head, f"{head}\n[How to read it](../{where}).\n")
    return markdown


def _held(module: Any) -> list[str]:
    """The public functions and classes of a module, in their order."""
    own = (member for member in module.members.values() if not member.is_alias and not member.name.startswith("_"))
    return [member.path for member in own if (member.is_function or member.is_class) and member.has_docstring]


def command_line_page() -> str:
    """The page of the command line: every verb with its options."""
    group = typer.main.get_command(app)
    context = group.make_context("interp", [], resilient_parsing=True)
    parts = ["# Command line", _prose(group.help)]

    def add(command: Any, words: str, above: Any) -> None:
        if command.hidden:
            return
        parts.append(f"## {words}\n\n{_prose(command.help)}")
        inner = command.make_context(words.split()[-1], [], parent=above, resilient_parsing=True)
        if hasattr(command, "commands") and command.name != "run":
            rows = []
        else:
            rows = [_option_row(p) for p in command.get_params(inner) if "--help" not in p.opts]
        if command.name == "run":
            parts.append("[Experiments](experiments/index.md) lists them all; each has options of its own.")
        elif rows:
            parts.append("| | what it is | default |\n|---|---|---|\n" + "\n".join(rows))
        if command.epilog:
            examples = re.split(r"\s+\|\s+", command.epilog.partition(":")[2].strip())
            parts.append("```sh\n" + "\n".join(" ".join(line.split()) for line in examples) + "\n```")
        if hasattr(command, "commands") and command.name != "run":
            for name, below in command.commands.items():
                add(below, f"{words} {name}", inner)

    for name in group.list_commands(context):
        add(group.get_command(context, name), f"interp {name}", context)
    return "\n\n".join(parts) + "\n"


def _prose(text: str | None) -> str:
    """Help as Markdown: rich's markup becomes code."""
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", text or "", flags=re.S)


def _option_row(parameter: Any) -> str:
    """A row of the table of options."""
    flags = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-"))
    name = flags or f"`{str(parameter.name).upper()}`"
    about = " ".join(_prose(getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
    default = parameter.default
    plain = default if isinstance(default, str | int | float | Path) and not isinstance(default, bool) else ""
    return f"| {name} | {about} | {f'`{plain}`' if str(plain) else ''} |"


# --- notebooks --------------------------------------------------------------------------------------------------------


def notebook_pages() -> dict[str, str]:
    """A page for each notebook, with outputs; with SITE_NOTEBOOKS=stored, with those that are there already."""
    paths = executed_notebooks.NOTEBOOKS
    if os.environ.get("SITE_NOTEBOOKS") == "stored":
        executed = {path: executed_notebooks.stored(path) or nbformat.read(path, as_version=4) for path in paths}
    else:
        executed = executed_notebooks.ensure_executed(paths)
    pages = {}
    for path, notebook in executed.items():
        name = f"notebooks/{path.stem}.md"
        pages[name], _outputs[name] = site_pages.notebook_page(notebook, path.name)
    return pages


# --- hooks ------------------------------------------------------------------------------------------------------------


def on_config(config: Any) -> Any:
    """Place pages that `nav` does not name: docs of no section, notebooks, the reference."""
    named = set(re.findall(r"[\w/.-]+\.md", str(config.nav)))
    sections = {name: pages for section in config.nav for name, pages in section.items()}
    docs = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
    sections["Guide"] += [page for page in docs if page not in named]
    sections["Notebooks"] += [f"notebooks/{path.stem}.md" for path in executed_notebooks.NOTEBOOKS]
    experiments, parts = [f"reference/experiments/{name}.md" for name in catalog.names()], []
    parts = [{f"interp.{Path(page).stem}": page} for page in module_pages() if not page.endswith("index.md")]
    sections["Reference"] += [
        {"Experiments": ["reference/experiments/index.md", *experiments]},
        {"Modules": ["reference/modules/index.md", *parts]},
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Lay the pages out as in the repository, with those that are made."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    pages = [*PROJECT_PAGES, *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
    texts = {page: (ROOT / page).read_text(encoding="utf-8") for page in pages}
    made = {"reference/index.md": public_names_page(), "reference/command_line.md": command_line_page()}
    made |= module_pages() | experiment_pages() | notebook_pages()
    for page in texts:
        files.append(File(page, str(ROOT), config.site_dir, config.use_directory_urls))
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    # what pages link to, and nothing else of the repository
    linked = {path.relative_to(ROOT).as_posix() for path in executed_notebooks.NOTEBOOKS}
    for page, text in (texts | made).items():
        for target in site_pages.link_targets(text):
            path = Path(os.path.normpath(ROOT / Path(page).parent / target))
            if path.is_file() and path.suffix not in (".md", ".ipynb") and path.is_relative_to(ROOT):
                linked.add(path.relative_to(ROOT).as_posix())
    for name in sorted(linked):
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    for path in sorted(ASSETS.iterdir()):
        files.append(File.generated(config, f"assets/{path.name}", content=path.read_bytes()))
    plotly_js = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    files.append(File.generated(config, PLOTLY, content=plotly_js.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn GitHub's Markdown into what Python-Markdown renders alike, with links into the reference."""
    name = page.file.src_uri
    if name == "README.md":
        page.meta["hide"] = ["navigation"]
    if name == "figures/README.md":
        markdown = with_readings(markdown)
    if name.startswith("reference/"):  # a reader who searches wants the guide first
        page.meta["search"] = {"boost": 0.1}

    def missing(found: str) -> None:
        if name not in HISTORY:
            log.warning("%s names `%s`, which the package does not have", name, found)

    text = site_pages.with_made_pages(site_pages.with_details(site_pages.with_spaced_lists(markdown)))
    if name.startswith("reference/"):
        return text
    return site_pages.with_references(text, documented, missing)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Images load lazily and open in full size."""
    return site_pages.with_links_to_images(html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Put a notebook's outputs into its page, and what draws figures."""
    outputs = _outputs.get(page.file.src_uri)
    if outputs is None:
        return output
    root = "../" * page.url.count("/")
    scripts = f'<script src="{root}{PLOTLY}"></script><script src="{root}assets/figures.js"></script>'
    return site_pages.with_outputs(output, outputs).replace("</body>", f"{scripts}</body>")


def on_post_build(config: Any) -> None:
    """Fail where a page would load anything from another host."""
    shutil.rmtree(Path(config.site_dir, "assets", "__pycache__"), ignore_errors=True)
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = site_pages.external_resources(path.read_text(encoding="utf-8"), path.suffix)
            if found:
                raise PluginError(f"{path.relative_to(config.site_dir)} loads {found[0]}: keep a copy in the site")

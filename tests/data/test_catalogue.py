"""The catalogue: every entry is checked and can be listed, and names resolve to what is read."""

from __future__ import annotations

import functools
import http.server
import threading
import zipfile
from pathlib import Path
from typing import get_args

import pytest

from biometro import cli
from biometro.alphabet import SequenceKind
from biometro.data import catalogue
from biometro.data.sources import expand, read
from biometro.errors import UserError
from biometro.jobs.prepare import prepare

OWN = """
mine:
  title: A set of ours
  kind: {kind}
  page: https://example.org
  url: {url}
  format: csv
  column: letters
  licence: CC0 1.0
  citation: nobody
  memory: [licence]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of one entry, whose URL is that of a local server; its folder."""
    (tmp_path / "web").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    pytest.importorskip("aiohttp")
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    text = OWN.format(kind="protein", url=f"http://127.0.0.1:{server.server_port}/{{part:2}}/{{part}}")
    text = text.replace("  format", "  part: file, such as x.csv\n  format")
    (tmp_path / "own.yaml").write_text(text)
    found = catalogue.read(tmp_path / "own.yaml")
    monkeypatch.setattr(catalogue, "entries", lambda: found)
    yield tmp_path  # type: ignore[misc]
    server.shutdown()
    server.server_close()


def test_every_entry_is_whole() -> None:
    entries = catalogue.entries()
    assert {entry.kind for entry in entries.values()} == set(get_args(SequenceKind)) - {"text"}
    for name, entry in entries.items():
        assert entry.format in ("fasta", "csv", "tsv", "parquet", "smi", "sdf"), name
        assert entry.licence and entry.citation and entry.page.startswith("http"), name
        if entry.url and not entry.how:
            part = entry.default or (next(iter(entry.parts)) if entry.parts else "ABCD" if entry.part else None)
            url = entry.locate(name, part)
            assert "{" not in url and url.startswith(("https://", "zip://")), name


def test_names_stand_for_urls() -> None:
    for name, url in {
        "uniref50": "https://ftp.uniprot.org/pub/databases/uniprot/uniref/uniref50/uniref50.fasta.gz",
        "zinc20@CDAA": "https://files.docking.org/2D/CD/CDAA.smi",
        "zinc22@H04M000": "https://files.docking.org/zinc22/2d/H04/H04M000.smi.gz",
        "moleculenet@hiv": "https://deepchemdata.s3-us-west-1.amazonaws.com/datasets/HIV.csv",
        "chembl@25": "https://ftp.ebi.ac.uk/pub/databases/chembl/ChEMBLdb/releases/chembl_25/chembl_25_chemreps.txt.gz",
    }.items():
        assert catalogue.resolve(f"catalogue:{name}")[1] == url
    for name, message in {
        "uniref5": "no 'uniref5'; did you mean 'uniref50'",
        "uniref50@2": "is one file",
        "zinc20": "say which tranche",
        "zinc20@../../x": "is no tranche",
        "moleculenet@hvi": "did you mean 'hiv'",
        "mcpas": "cannot be read as it is: download McPAS-TCR.csv",
        "oas-paired": "give the URLs of the script",
    }.items():
        with pytest.raises(UserError, match=message):
            expand(f"catalogue:{name}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("licence: CC0 1.0", "licens: CC0 1.0"), "no key 'licens'; did you mean 'licence'"),
        (("  citation: nobody\n", ""), "the key 'citation' is missing"),
        (("kind: protein", "kind: proteins"), "kind"),
        (("memory: [licence]", "memory: [bytes]"), "memory names 'bytes'"),
        (("citation: nobody", "citation: ''"), "citation is empty"),
        (("https://example.org/x", "''"), "how must say"),
        (("https://example.org/x", "https://example.org/{part}"), "go together"),
        (("  format", "  bytes: 0\n  format"), "above 0"),
    ],
)
def test_a_wrong_entry_is_an_error(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = OWN.format(kind="protein", url="https://example.org/x")
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert catalogue.read(path)["mine"].column == "letters"
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UserError, match=rf"c\.yaml, mine: .*{message}"):
        catalogue.read(path)


def test_prepare_reads_from_the_catalogue_as_it_says(own: Path) -> None:
    folder = own / "web" / "x."
    folder.mkdir()
    (folder / "x.csv").write_text("name,letters\n" + "".join(f"{i},MKTAY{'ACDEFGHIKL'[i] * 9}\n" for i in range(10)))
    corpus = prepare("catalogue:mine@x.csv", str(own / "c"), valid=0.0)
    assert corpus is not None and corpus.info["splits"]["train"]["sequences"] == 10
    assert corpus.info["sources"][0]["name"].endswith("/x./x.csv")
    with pytest.raises(UserError, match="no column named 'name2'"):
        prepare("catalogue:mine@x.csv", str(own / "d"), column="name2")


def test_what_is_asked_for_goes_before_the_catalogue() -> None:
    assert catalogue.settings("catalogue:pubchem", "protein", "sequence") == ("molecule", "sequence")
    assert catalogue.settings(["catalogue:chembl"], "protein", "sequence") == ("molecule", "canonical_smiles")
    assert catalogue.settings("catalogue:chembl", "molecule", "x") == ("molecule", "x")
    assert catalogue.settings("a.fasta", "protein", "sequence") == ("protein", "sequence")
    with pytest.raises(UserError, match=r"several kinds \(molecule, protein\)"):
        catalogue.settings(["catalogue:chembl", "catalogue:uniref50"], "protein", "sequence")


def test_a_file_inside_an_archive_at_a_url(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "v.zip", "w") as archive:
        archive.writestr("vdjdb.txt", "sequence\tgene\nCASSF\tTRB\nCAVF\tTRA\n")
    from biometro.data.sources import ReadOptions

    source = expand(f"zip://vdjdb.txt::file://{tmp_path}/v.zip", ReadOptions(format="tsv"))[0]
    assert [record.raw for record in read(source)] == [b"CASSF", b"CAVF"]


def test_list_prints_every_source_and_needs_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["prepare", "--list"], ["prepare", "--list", "true"], ["prepare", "--list=true", "--valid=0.1"]):
        assert cli.main(arguments) == 0
        said = capsys.readouterr().out
        assert all(name in said for name in catalogue.entries())
        assert "CC BY-SA 3.0" in said and "(from memory)" in said and "184 million records" in said
    assert cli.main(["prepare", "--data=x.fasta"]) == 1 and "--out" in capsys.readouterr().err
    assert cli.main(["prepare", "--out=x"]) == 1 and "no input was given" in capsys.readouterr().err

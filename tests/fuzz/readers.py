"""Every reader of files that a stranger may have written: one line each."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import biometro
from biometro import cli
from biometro.alphabet import PROTEIN, Alphabet, MoleculeAlphabet, MoleculePolicy, Reading
from biometro.alphabet.immune import TCR
from biometro.data.alignment import read_alignment
from biometro.data.contacts import read_table
from biometro.data.corpus import Corpus
from biometro.data.intake import Account, clean
from biometro.data.labels import read_labelled
from biometro.data.sources import ReadOptions, Record, expand
from biometro.data.structures import read_chains
from biometro.data.task import Answers, Calibration, LabelConfig, Task
from biometro.data.variants import VariantOptions, read_variants
from biometro.data.wildtype import read_wildtype
from biometro.errors import UserError
from biometro.evaluation.tasks import read_task, suites
from biometro.files import sha256_of
from biometro.inference import screen, store, vectors
from biometro.inference.predict import Predictor
from biometro.model import adapter_files, esm2
from biometro.model.bundle import Bundle
from biometro.model.encoder import Encoder, EncoderConfig
from biometro.model.heads import LabelHead, LabelHeadConfig, VocabularyHead, VocabularyHeadConfig
from biometro.objectives.mlm import MLM
from biometro.training import checkpoint
from biometro.training.checkpoint import Checkpoints, Progress
from biometro.training.optimizer import OptimizerConfig
from biometro.training.optimizer import build as build_optimizer
from biometro.training.parallel import World
from biometro.training.tracking import figures, read_metrics

from .registry import READERS, folder_reader, reader

__all__ = ["READERS"]

FASTA = b">a first\nMKTA\nYI\n\n>b\r\nGG*\r\n>c\nWux-."
ALIGNED = b"#8\t1\n>q\nMK-Ta\nYIW\n>b\nMR-TY.-Wgg\n\n>c\nXKAT*IW\n"
TABLE = b'id,sequence,split\nx,MK,train\n"y ""y""","GG",valid\n'
LABELS = b'id,sequence,label,several,number,residues\nx,MKT,a,p;q,1.5,HHE\ny,GG,b,,nan,"0.1,2"\nz,W,a,q,1e3,C\n'
CONTACTS = b"sequence,pairs\nMKTAYIGG,1-7;2-8\nGGWK,\n"
PDB = b"".join(
    b"ATOM  %5d  %-3s %s A%4d    %8.3f%8.3f%8.3f  1.00  0.00           %s\n" % (*names, *place, names[1][:1])
    for i, residue in enumerate([b"ALA", b"GLY", b"MSE"])
    for names, place in [((4 * i + 1, b"N", residue, i**2 + 1), (i, 1, 3.5 * i)),
                         ((4 * i + 2, b"CA", residue, i**2 + 1), (i, 0, 3.5 * i + 1)),
                         ((4 * i + 3, b"C", residue, i**2 + 1), (i, 1, 3.5 * i + 2)),
                         ((4 * i + 4, b"CB", residue, i**2 + 1), (i, 3, 3.5 * i))]
)  # fmt: skip
SEQRES = b"SEQRES   1 A    5  ALA GLY TRP LYS MSE\n"
CIF = b"""data_x
loop_
_entity_poly_seq.entity_id
_entity_poly_seq.num
_entity_poly_seq.mon_id
1 1 ALA
1 2 GLY
1 3 TRP
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.label_asym_id
_atom_site.label_entity_id
_atom_site.label_seq_id
_atom_site.pdbx_PDB_ins_code
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.B_iso_or_equiv
_atom_site.auth_seq_id
_atom_site.auth_asym_id
_atom_site.pdbx_PDB_model_num
ATOM 1 C CB . ALA A 1 1 ? 1.0 2.0 3.0 1.0 10 11 A 1
ATOM 2 C CA A GLY A 1 2 ? 4.0 2.0 3.0 0.4 10 12 A 1
ATOM 3 C CA B GLY A 1 2 ? 4.0 2.5 3.0 0.6 10 12 A 1
ATOM 4 C CB . TRP A 1 3 ? 7.0 2.0 9.0 1.0 10 13 A 1
"""
MUTANTS = b"mutant,mutated_sequence,DMS_score\nA4G,MKTGYIAK,1.5\nK2R:T3_A4insGG,MRTGGAYIAK,-1\n,MKTAYIAK,0\n"
MUTATIONS = b"A4G:Y5F # mine\nNP_1.1:p.[(Ala4Gly);(Lys8del)]\np.Lys2_Ala4delinsTrp\nT3dup\nWT\n\nY5fs\n0_M1insGG\n"
OAS = (
    b'"{""Run"": 1, ""Species"": ""human"", ""Chain"": ""Heavy""}"\n'
    b"sequence,locus,productive,v_call,sequence_alignment_aa,cdr1_aa,cdr2_aa,cdr3_aa\n"
    b"ACGT,H,T,IGHV1-2*02,EVQLVESGG,GYTF,INPS,ARGW\nACGT,K,F,IGKV1,DIQMT,QS,AAS,QQSY\n"
)
AIRR = b"sequence_id\tsequence\tproductive\tv_call\tjunction_aa\nx\tACGT\tT\tTRBV7-2\tCASSF\ny\tACGT\tF\tTRAV1\tCAVF\n"
VDJDB = (
    b"complex.id\tGene\tCDR3\tV\tSpecies\tMHC A\tEpitope\tMeta\n"
    b'1\tTRA\tCAVF\tTRAV1\tHomoSapiens\tHLA-A*02\tGIL\t{"x": ""}\n'
    b"1\tTRB\tCASSF\tTRBV1\tHomoSapiens\tHLA-A*02\tGIL\t{}\n"
)
MCPAS = b"CDR3.alpha.aa,CDR3.beta.aa,Species,Epitope.peptide\nCAVF\xa0,CASSF,Human,GIL\nNA,CASSL,Mouse,NA\n"
IEDB = (
    b"Receptor,Epitope,Chain 1,Chain 1,Chain 1,Chain 2,Chain 2,Chain 2\n"
    b"Type,Name,Type,CDR3 Curated,CDR3 Calculated,Type,CDR3 Curated,CDR3 Calculated\n"
    b"alphabeta,GIL,alpha,AVF,,beta,,ASSF\n"
)
SDF = b"""ethanol
     RDKit          2D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    1.2990    0.7500    0.0000 C   0  0  0  0  0  0  0  0  0  0  0  0
    2.5981   -0.0000    0.0000 O   0  0  0  0  0  0  0  0  0  0  0  0
  1  2  1  0
  2  3  1  0
M  END
>  <CAS>  (1)
64-17-5

$$$$
"""
SDF_V3000 = b"""ethanol
     RDKit          2D

  0  0  0  0  0  0  0  0  0  0999 V3000
M  V30 BEGIN CTAB
M  V30 COUNTS 3 2 0 0 0
M  V30 BEGIN ATOM
M  V30 1 C 0.000000 0.000000 0.000000 0
M  V30 2 C 1.299038 0.750000 0.000000 0
M  V30 3 O 2.598076 -0.000000 0.000000 0
M  V30 END ATOM
M  V30 BEGIN BOND
M  V30 1 1 1 2
M  V30 2 1 2 3
M  V30 END BOND
M  V30 END CTAB
M  END
> <CAS>
64-17-5

$$$$
"""
RECIPES = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))]
TASKS = [path.read_bytes() for files in suites().values() for path in files]
FITS = [recipe for recipe in RECIPES if b"\nlabels:" in recipe]
PAIRS = [recipe for recipe in RECIPES if b"\npairs:" in recipe]
SEARCHES = [recipe for recipe in RECIPES if b"\nspace:" in recipe]
STUDIES = [recipe for recipe in RECIPES if b"\ncorpora:" in recipe]


def records(**options: object) -> Callable[[Path], list[tuple[Record, bytes]]]:
    settings = ReadOptions(**options)  # type: ignore[arg-type]
    reading = Reading(settings.kind, "keep_as_x")
    return lambda path: list(clean(expand(str(path), settings), settings, reading, Account()))


def labels(*configs: LabelConfig) -> Callable[[Path], None]:
    """Each way of reading a file's labels; that one finds nothing must not keep the others from being tried."""

    def run(path: Path) -> None:
        refused: list[UserError] = []
        for config in configs:
            try:
                read_labelled(str(path), config, ReadOptions())
            except UserError as error:
                refused.append(error)
        if len(refused) == len(configs):
            raise refused[0]

    return run


LABEL_COLUMNS = [
    LabelConfig(column="label", min_per_class=1),
    LabelConfig("multilabel", column="several", bad="drop"),
    LabelConfig("regression", column="number", bad="drop", conflicts="merge"),
    LabelConfig("residue_classification", column="residues", bad="drop", conflicts="first"),
    LabelConfig("residue_regression", column="residues", bad="drop"),
]


def variants(path: Path) -> None:
    read_variants(str(path), "MKTAYIAK", VariantOptions(bad="drop"))


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


def parquet(**options: object) -> bytes:
    out = io.BytesIO()
    columns = {"id": ["x", "y", "z"] * 20, "sequence": ["MKTA", "GG", "W"] * 20, "split": ["train", None, "valid"] * 20}
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def vdjdb_parquet() -> bytes:
    out = io.BytesIO()
    columns = {"cdr3.alpha": ["CAVF", None], "cdr3.beta": ["CASSF", "CASSL"], "antigen.epitope": ["GIL", None]}
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def a_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = EncoderConfig(width=16, depth=1, head_size=8, ffn_width=16)
    modules = {"encoder": Encoder(config), "vocabulary": VocabularyHead(VocabularyHeadConfig(16, 33))}
    Bundle(PROTEIN, modules, {"seed": 0, "encoder": {"width": 16}}, {"steps": "10"}, 254).save(folder)


def a_fitted_model(folder: Path) -> None:
    torch.manual_seed(0)
    modules = {
        "encoder": Encoder(EncoderConfig(width=16, depth=1, head_size=8, ffn_width=16)),
        "head": LabelHead(LabelHeadConfig(16, 2)),
    }
    task = Answers(Task("classification", ("a", "b")), Calibration(1.5, 0.8), Reading(), 100)
    Bundle(PROTEIN, modules, {"seed": 0}, {"task": "x"}, 254, task).save(folder)


def use_fitted_model(path: Path) -> None:
    Predictor(biometro.load(path))([b"MKTAYI", b"G"])


def a_huggingface_folder(folder: Path) -> None:
    a_model(folder / "ours")
    esm2.to_huggingface(biometro.load(folder / "ours"), folder)


def a_sharded_folder(folder: Path) -> None:
    a_huggingface_folder(folder)
    weights = folder / "model.safetensors"
    weights.rename(folder / "part.safetensors")
    index = {"weight_map": {"esm.embeddings.word_embeddings.weight": "part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def a_protbert_folder(folder: Path) -> None:
    """A small BERT that reads residues with spaces between them, as transformers writes it."""
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]
    tokenizer = BertTokenizer({token: number for number, token in enumerate(tokens)}, do_lower_case=False)
    tokenizer.save_pretrained(folder)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=40)  # fmt: skip
    BertModel(config).save_pretrained(folder)


def a_fair_checkpoint() -> bytes:
    import argparse

    torch.manual_seed(0)
    names = {"self_attn.q_proj": (16, 16), "self_attn.k_proj": (16, 16), "self_attn.v_proj": (16, 16),
             "self_attn.out_proj": (16, 16), "self_attn_layer_norm": (16,), "fc1": (16, 16), "fc2": (16, 16),
             "final_layer_norm": (16,)}  # fmt: skip
    state = {f"encoder.layers.0.{name}.weight": torch.randn(shape) for name, shape in names.items()}
    state |= {f"encoder.layers.0.{name}.bias": torch.randn(16) for name in names}
    state |= {f"encoder.emb_layer_norm_after.{kind}": torch.randn(16) for kind in ("weight", "bias")}
    state |= {"encoder.embed_tokens.weight": torch.randn(33, 16)}
    state |= {"encoder.layers.0.self_attn.rot_emb.inv_freq": torch.randn(4)}
    out = io.BytesIO()
    torch.save({"cfg": {"model": argparse.Namespace(layers=1)}, "model": state}, out)
    return out.getvalue()


def reseal_model(folder: Path) -> None:
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        config = json.loads((folder / "config.json").read_bytes())
        config["weights_sha256"] = sha256_of(folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(config))


def use_model(path: Path) -> None:
    """Embed two sequences and write the card: what loads must also work."""
    biometro.embed(str(path), ["MKTA", "GG"])
    biometro.load(path).card()


def an_adapter(folder: Path) -> None:
    encoder = adapter_encoder()
    generator = torch.Generator().manual_seed(0)
    updates = {
        name: adapter_files.Update(
            torch.randn(2, layer.in_features, generator=generator),
            torch.randn(layer.out_features, 2, generator=generator),
            4.0,
        )
        for name, layer in adapter_files.linears(encoder).items()
    }
    adapter_files.write(encoder, folder, updates, "huggingface", "base", 0.1)


def adapter_encoder() -> Encoder:
    return Encoder(EncoderConfig(width=16, depth=1, head_size=8, ffn_width=16))


def use_adapter(path: Path) -> None:
    """What is read must fit the encoder's weights."""
    encoder = adapter_encoder()
    for name, update in adapter_files.read(encoder, path).updates.items():
        encoder.get_parameter(f"{name}.weight").detach().add_(update.scale * update.b_OR @ update.a_RI)


def a_corpus(folder: Path) -> None:
    folder.rmdir()
    (folder.parent / "in.fasta").write_bytes(b"".join(b">%d\n%s\n" % (i, b"MKTAYI"[: i % 5 + 1]) for i in range(9)))
    with contextlib.redirect_stderr(io.StringIO()):
        biometro.prepare(str(folder.parent / "in.fasta"), str(folder), valid=0.2)
    info = json.loads((folder / "corpus.json").read_text())
    info["created"], info["sources"][0]["name"] = "2000-01-01T00:00:00Z", "in.fasta"  # the same each time
    (folder / "corpus.json").write_text(json.dumps(info))


def use_corpus(path: Path) -> None:
    corpus = Corpus.open(path)
    corpus.verify()
    for name in ("train", "valid"):
        split = corpus.split(name)
        for number in range(min(len(split), 100)):
            split[number]


def embeddings(suffix: str, per_residue: bool) -> bytes:
    import tempfile

    found = [np.full((3, 2), 0.5, np.float32), np.full((1, 2), 0.25, np.float32)]
    if not per_residue:
        found = [vector[0] for vector in found]
    with tempfile.TemporaryDirectory() as folder:
        part, out = Path(folder) / "part.parquet", Path(folder) / f"out{suffix}"
        vectors.write_part(part, vectors.Embeddings(["a", "b"], found, per_residue), 2)
        vectors.join([part], out, 2, per_residue, {"model": "m"})
        return out.read_bytes()


def use_alignment(query: str | None) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        found = read_alignment(str(path), query, coverage=0.2)
        found.frequencies()
        found.conservation()

    return run


def parse(job: str) -> Callable[[Path], object]:
    def run(path: Path) -> object:
        return cli.parse([job, "--config", str(path)])

    return run


def use_metrics(path: Path) -> None:
    for row in read_metrics(path):
        figures(row)


def a_checkpoint(folder: Path) -> None:
    checkpoints(folder).save(Progress(step=3, tokens=100))
    found = checkpoints(folder)
    assert found.load(print) is not None
    for path in (folder / "step-00000003").iterdir():
        path.rename(folder / path.name)  # the harness knows files, not folders of folders
    (folder / "step-00000003").rmdir()
    data = (folder / SHARD).read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()  # safetensors' order changes by the run
    (folder / SHARD).write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    reseal_checkpoint(folder)


def checkpoints(folder: Path) -> Checkpoints:
    torch.manual_seed(0)
    goal = MLM(EncoderConfig(width=16, depth=1, head_size=8), PROTEIN)
    found = Checkpoints(folder, goal, build_optimizer(goal, OptimizerConfig()), World(), 2)
    save = found.save

    def save_and_wait(progress: Progress) -> None:
        save(progress)
        found.finish()

    found.save = save_and_wait  # type: ignore[method-assign]
    return found


def reseal_checkpoint(folder: Path) -> None:
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        state = json.loads((folder / "state.json").read_bytes())
        state["sha256"] = {SHARD: sha256_of(folder / SHARD)}
        state["seal"] = checkpoint._seal(state["progress"], state["sha256"])
        (folder / "state.json").write_text(json.dumps(state))


def use_checkpoint(path: Path) -> None:
    step = path / "step-00000003"
    step.mkdir()
    for name in ("state.json", SHARD):
        shutil.copyfile(path / name, step / name)
    try:
        found = checkpoints(path)
        found.load(lambda text: None)
        found.close()
    finally:
        shutil.rmtree(step)


def a_store(folder: Path) -> None:
    rows = np.eye(3, 4, dtype=np.float32)
    note = store.write_shard(folder / "00000000-a", ["a", "b", "c"], [b"CCO", b"CN", b""], rows)
    store.write_about(folder, store.About("m", "w", "ligand", "molecule"), 4, [note])


def use_store(path: Path) -> None:
    found = store.open_store(path)
    query = np.eye(1, found.width, dtype=np.float32)
    for first in ("int8", "float32"):
        ranking = screen.rank(found, query, 2, first=first)
        found.entries(ranking.numbers[ranking.numbers != screen.NONE])


SHARD = "shard-00001-model-00001-of-00001.safetensors"
METRICS = b'{"step": 1, "split": "train", "loss": 2.5, "tokens_per_s": 10}\n{"step": 1, "split": "valid", "loss": 3}\n'

reader("fasta", suffix=".fasta", seeds=[FASTA], run=records())
reader("fasta.gz", suffix=".fasta.gz", seeds=[gzip.compress(FASTA, mtime=0)], run=records())
reader("fasta.bz2", suffix=".fasta.bz2", seeds=[bz2.compress(FASTA)], run=records())
reader("fasta.zst", suffix=".fasta.zst", seeds=[zstd(FASTA)], run=records())
reader("csv", suffix=".csv", seeds=[TABLE], run=records(id_column="id", split_column="split"))
reader("tsv", suffix=".tsv", seeds=[TABLE.replace(b",", b"\t")], run=records())
reader("csv.gz", suffix=".csv.gz", seeds=[gzip.compress(TABLE, mtime=0)], run=records())
reader("parquet", suffix=".parquet", seeds=[parquet(), parquet(compression="zstd", use_dictionary=False),
       parquet(compression="none")], run=records(id_column="id", split_column="split"))  # fmt: skip
reader("parts.csv", suffix=".csv", seeds=[b"a,b,c\nCAVF,CASSF,GIL\n,CASSL,\n,,\n"],
       run=records(kind="tcr", column={"alpha": "a", "beta": "b", "peptide": "c"}))  # fmt: skip
reader("oas.csv", suffix=".csv", seeds=[OAS, OAS.split(b"\n", 1)[1]], run=records(kind="antibody", fields=("locus",)))
reader("oas.csv.gz", suffix=".csv.gz", seeds=[gzip.compress(OAS, mtime=0)], run=records(kind="antibody", region="cdrs"))
reader("airr.tsv", suffix=".tsv", seeds=[AIRR, VDJDB], run=records(kind="tcr"))
reader("receptors.csv", suffix=".csv", seeds=[MCPAS, IEDB], run=records(kind="tcr"))
reader("receptors.txt", suffix=".txt", seeds=[VDJDB, AIRR], run=records(kind="tcr"))
reader("vdjdb.parquet", suffix=".parquet", seeds=[vdjdb_parquet()], run=records(kind="tcr"))
reader("smi", suffix=".smi", seeds=[b"smiles zinc_id\nCCO Z1\nc1ccccc1 Z2\n", b"1\tCCO\n2\tC1CC1\n",
       b"CCO |x| a b\nCN\n"], run=records(kind="molecule"))  # fmt: skip
reader("smi.txt", suffix=".txt", seeds=[b"CCO ethanol\nCN\n"], run=records(kind="molecule"))
reader("sdf", suffix=".sdf", seeds=[SDF, SDF.replace(b"\n", b"\r\n"), SDF_V3000],
       run=records(kind="molecule", fields=("CAS",)))  # fmt: skip
reader("labels.csv", suffix=".csv", seeds=[LABELS], run=labels(*LABEL_COLUMNS))
reader("labels.fasta", suffix=".fasta", seeds=[b">a|x class=p\nMKT\n>b|y class=q\nGG\n"],
       run=labels(LabelConfig(field=1, min_per_class=1), LabelConfig(key="class", min_per_class=1)))  # fmt: skip
reader("variants.csv", suffix=".csv", seeds=[MUTANTS], run=variants)
reader("variants.txt", suffix=".txt", seeds=[MUTATIONS], run=variants)
reader("variants.fasta", suffix=".fasta", seeds=[b">a\nMKTGYIAK\n>b\nKTAYGGIAKM\n>c\nWWW\n"], run=variants)
reader("wildtype", suffix=".fasta", seeds=[b">a first\nMKTA\nYIX*\n"], run=lambda path: read_wildtype(str(path)))
reader(
    "recipe",
    suffix=".yaml",
    run=parse("pretrain"),
    seeds=[recipe for recipe in RECIPES if recipe not in FITS + PAIRS + SEARCHES + STUDIES],
)
reader("recipe of pairs", suffix=".yaml", seeds=PAIRS, run=parse("align"))
reader("recipe of a search", suffix=".yaml", seeds=SEARCHES, run=parse("tune"))
reader("recipe of a study", suffix=".yaml", seeds=STUDIES, run=parse("study"))
reader("fit", suffix=".yaml", seeds=FITS, run=parse("finetune"))
reader("options", suffix=".yaml", seeds=[b"data: [a.fasta]\nout: x\nvalid: 0.1\n"], run=parse("prepare"))
reader("task", suffix=".yaml", seeds=TASKS, run=read_task)
reader("fair", suffix=".pt", seeds=[a_fair_checkpoint()], run=use_model)
reader("contacts.csv", suffix=".csv", seeds=[CONTACTS], run=lambda path: read_table(str(path)))
reader("pdb", suffix=".pdb", seeds=[PDB, SEQRES + PDB], run=lambda path: read_chains(str(path)))
reader("cif", suffix=".cif", seeds=[CIF], run=lambda path: read_chains(str(path)))
reader("cif.gz", suffix=".cif.gz", seeds=[gzip.compress(CIF, mtime=0)], run=lambda path: read_chains(str(path)))
reader("alignment", suffix=".a3m", seeds=[ALIGNED], run=use_alignment(None))
reader("alignment.part", suffix=".a2m", seeds=[ALIGNED], run=use_alignment("GGMKTAYIWG"))
reader("alignment.gz", suffix=".a3m.gz", seeds=[gzip.compress(ALIGNED, mtime=0)], run=use_alignment(None))
reader("npz", suffix=".npz", seeds=[embeddings(".npz", r) for r in (True, False)], run=vectors.read)
reader("vectors", suffix=".safetensors", seeds=[embeddings(".safetensors", r) for r in (True, False)], run=vectors.read)
reader("vectors.parquet", suffix=".parquet", seeds=[embeddings(".parquet", r) for r in (True, False)], run=vectors.read)
reader("part", suffix=".parquet", seeds=[embeddings(".parquet", True)], run=vectors.sound)
reader("metrics", suffix=".jsonl", seeds=[METRICS], run=use_metrics)
folder_reader("corpus", build=a_corpus,
              files=["corpus.json", "lengths.npy", "train-00000.npy", "train-00000.bin"], run=use_corpus)  # fmt: skip
folder_reader("model", build=a_model, files=["config.json", "model.safetensors", "recipe.yaml"], run=use_model,
              seal=reseal_model)  # fmt: skip
folder_reader("fitted", build=a_fitted_model, files=["config.json"], run=use_fitted_model, seal=reseal_model)
folder_reader("huggingface", build=a_huggingface_folder, files=["config.json", "model.safetensors"], run=use_model)
folder_reader("protbert", build=a_protbert_folder, run=use_model,
              files=["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])  # fmt: skip
folder_reader("shards", build=a_sharded_folder, files=["model.safetensors.index.json"], run=use_model)
folder_reader("adapter", build=an_adapter, files=["adapter_config.json", "adapter_model.safetensors"], run=use_adapter)
folder_reader("checkpoint", build=a_checkpoint, files=["state.json", SHARD], run=use_checkpoint, seal=reseal_checkpoint)


def a_corpus_of_molecules(folder: Path) -> None:
    folder.rmdir()
    (folder.parent / "in.csv").write_text("smiles\nCCO\nc1ccccc1\nC[C@H](F)Cl\n[Na+].[Cl-]\nCC(=O)N\n")
    with contextlib.redirect_stderr(io.StringIO()):
        biometro.prepare(str(folder.parent / "in.csv"), str(folder), kind="molecule", column="smiles", valid=0.2)
    info = json.loads((folder / "corpus.json").read_text())
    info["created"], info["sources"][0]["name"] = "2000-01-01T00:00:00Z", "in.csv"
    (folder / "corpus.json").write_text(json.dumps(info))


def use_corpus_of_molecules(path: Path) -> None:
    """Read it, and read other molecules with its vocabulary."""
    use_corpus(path)
    alphabet = Corpus.open(path).alphabet
    cleaner = Reading("molecule", molecules=MoleculePolicy(unknown="unk")).cleaner(alphabet)
    tokens = alphabet.encode(cleaner(b"OCC(Br)c1ccccc1").letters)
    if isinstance(alphabet, MoleculeAlphabet):
        alphabet.smiles(tokens)


def a_model_of(alphabet: Alphabet) -> Callable[[Path], None]:
    """Without the fingerprint of its alphabet, so that what it claims is looked at."""

    def build(folder: Path) -> None:
        torch.manual_seed(0)
        config = EncoderConfig(width=16, depth=1, head_size=8, ffn_width=16, vocab_size=alphabet.size,
                               mask_token=alphabet.id(alphabet.mask))  # fmt: skip
        Bundle(alphabet, {"encoder": Encoder(config)}, {"seed": 0}, {"steps": "10"}, 254).save(folder)
        saved = json.loads((folder / "config.json").read_text())
        del saved["alphabet"]["fingerprint"]
        (folder / "config.json").write_text(json.dumps(saved))

    return build


def use_model_of(name: str, data: bytes) -> Callable[[Path], None]:
    """Embed a file and write the card."""

    def run(path: Path) -> None:
        (path.parent / name).write_bytes(data)
        biometro.embed(str(path), str(path.parent / name))
        biometro.load(path).card()

    return run


folder_reader("molecules", build=a_corpus_of_molecules, files=["corpus.json"], run=use_corpus_of_molecules)
folder_reader("molecule model", build=a_model_of(MoleculeAlphabet.of(["[C]", "[O]", "[=O]"], "selfies")),
              files=["config.json"], run=use_model_of("in.smi", b"CCO\nCC=O\n"), seal=reseal_model)  # fmt: skip
folder_reader("smiles model", build=a_model_of(MoleculeAlphabet.of(["C", "O", "=", "(", ")"], "smiles")),
              files=["config.json"], run=use_model_of("in.smi", b"CCO\nCC(=O)C\n"), seal=reseal_model)  # fmt: skip
folder_reader("tcr model", build=a_model_of(TCR), files=["config.json"],
              run=use_model_of("in.fasta", b">a\nCAVF|CASSF:GIL\n>b\nCASSF\n"), seal=reseal_model)  # fmt: skip
folder_reader("store", build=a_store, run=use_store, files=["store.json", *(f"00000000-a/{name}" for name in (
              "vectors.npy", "codes.npy", "scales.npy", "centre.npy", "offsets.npy", "text.bin"))])  # fmt: skip

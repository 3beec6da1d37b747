"""Scores of variants from a model's likelihoods: how much more likely a variant is than its wild type.

    wild type, variants ─▶ passages to read ─▶ Likelihood ─▶ tables ─▶ a number for each variant, higher is fitter

With x the wild type, x' the variant, S the places of its substitutions, and p(a at i | z) what the model holds for a
letter a at place i of a sequence z; `z \\ i` is z with place i masked, L its length:

    wildtype  1 pass        sum over S of log p(x'_i at i | x) - log p(x_i at i | x); stands for masked
    masked    L passes      sum over S of log p(x'_i at i | x \\ i) - log p(x_i at i | x \\ i)
    mutant    1 a variant   sum over S of log p(x'_i at i | x') - log p(x_i at i | x'); stands for masked
    pll       L a variant   sum over all i of log p(x'_i at i | x' \\ i), minus the same of x
    pll_fast  1 a variant   the same from one pass, the sight of the letter undone by Bayes' rule; stands for pll
    clm       1 pass        as wildtype, by the head with which a METRO model restores; stands for masked
    rtd       L passes and  sum over S of log q(x'_i) - logit(i replaced in x'), minus the same of x, with q(a) the
              1 a variant   auxiliary's probability of a at i given x \\ i; stands for masked
    average                 the variant's rank among all as a share of them, mean over the other methods

What stands for another is an approximation of it.

Sources: wildtype, masked and mutant marginals are those of Meier et al. 2021 (ESM-1v); masked has one mask at a time,
so that the score of several substitutions is the sum of their own, as in ProteinGym (Notin et al. 2023). pll: Salazar
et al. 2020 (arXiv 1910.14659); of insertions and deletions, Brandes et al. 2023 (Nature Genetics 55, 1512). pll_fast:
after Kantroo et al. 2024 (arXiv 2407.07265). rtd: the density ratio of Electric (Clark et al. 2020, arXiv 2012.08561):
p(a at i | rest) is proportional to q(a) (1 - D) / D, with D the detector's probability. It leaves out that METRO counts
a lucky draw as original, which adds log((1 - m + m q(a)) / (1 - p(a))) with m the mask rate: little, where p is small.

pll_fast for a masked language model: BERT's corruption leaves as many chosen letters in place (10 %) as it replaces by
one of A letters at random (10 %), so that, where a letter is seen, it has u = p (A + 1) / (p A + 1), with p its
probability given the rest. Hence p = u / (A + 1 - A u). The main model of METRO is trained (clm_positions: masked) at
places whose letters the auxiliary drew without knowing the original: the letter seen there tells nothing, and u is
taken as it is, and so it is of clm_positions: all, where it tells more of that letter than p does (what is not
replaced is there to be copied); its auxiliary (part: auxiliary) is taken for a masked language model.

Shape letters: L residues of the wild type, A letters, N variants, P places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from biometro.data.changes import Change, apply
from biometro.data.variants import Variant
from biometro.errors import UserError
from biometro.inference.likelihood import Likelihood

FEWEST = 10
"""Variants over which ranks are compared, at least."""
_BLOCK = 1 << 18  # letters of sequences whose likelihoods are asked for at once: 20 MB of answers


@dataclass(frozen=True)
class Method:
    """What a method can do. `table`: single substitutions are a table (L, A), of which the others are sums. `indels`:
    lengths may change. `approximates`: the exact method that it stands for; empty where it is exact."""

    summary: str
    table: bool = False
    indels: bool = False
    approximates: str = ""


METHODS = {
    "wildtype": Method("wild-type marginals", table=True, approximates="masked"),
    "masked": Method("masked marginals", table=True),
    "mutant": Method("mutant marginals", approximates="masked"),
    "pll": Method("pseudo-log-likelihood", indels=True),
    "pll_fast": Method("pseudo-log-likelihood in one pass", indels=True, approximates="pll"),
    "clm": Method("METRO's restoring head, one pass", table=True, approximates="masked"),
    "rtd": Method("density ratio of METRO's auxiliary and detector", approximates="masked"),
    "average": Method("mean of the other methods' ranks"),
}


def methods_of(likelihood: Likelihood) -> list[str]:
    """The methods that a model can be asked for, `average` left out. `wildtype` of a METRO model is `clm`, unless its
    auxiliary is asked. `rtd` asks both parts, so there is none where `part` is main."""
    able = ["masked", "pll"]
    if likelihood.part == "auxiliary" or "vocabulary" in likelihood.bundle.modules:
        able += ["mutant", "pll_fast", "clm" if _restores(likelihood) else "wildtype"]
    if likelihood.has_detector and likelihood.part != "main":  # the auxiliary's probabilities are half of the ratio
        able.append("rtd")
    return [name for name in METHODS if name in able]


def chosen(names: Sequence[str], likelihood: Likelihood) -> list[str]:
    """Names of methods, each once, with what two of them stand for: `auto` for clm of METRO models and masked of
    others, `all` for every method that this model can be asked for, but pll, which costs L passes a variant."""
    found: list[str] = []
    for name in names:
        if name == "auto":
            found.append("clm" if _restores(likelihood) else "masked")
        elif name == "all":
            found += [method for method in methods_of(likelihood) if method != "pll"]
        else:
            found.append(name)
    return list(dict.fromkeys(found))


class Scorer:
    """One wild type and one model; what methods share is computed once.

    Args:
        likelihood: of the model.
        wildtype: letters; those that are not standard residues (X) are read, and cannot be scored.

    Raises UserError where the wild type is empty or has a letter without a token.
    """

    def __init__(self, likelihood: Likelihood, wildtype: str):
        self.likelihood, self.wildtype = likelihood, wildtype
        self._letters = wildtype.encode()
        if not wildtype:
            raise UserError("the wild type has no residue")
        self._columns = {letter: column for column, letter in enumerate(likelihood.letters)}
        self._tables: dict[str, np.ndarray] = {}  # rows are NaN until they are asked for
        self._sums: dict[tuple[str, tuple[Change, ...]], float] = {}

    def table(self, method: str, places: Sequence[int] | None = None) -> np.ndarray:
        """(P, A) float64 of single substitutions at the places (default: all): 0 for the wild type's own letter, NaN
        where that is no standard residue.

        Raises UserError for a method whose scores of substitutions do not add up.
        """
        if not METHODS[method].table:
            raise UserError(f"{method} has no table of substitutions; {', '.join(_names_with_table())} have")
        wanted = list(range(len(self.wildtype))) if places is None else list(places)
        table_LA = self._tables.setdefault(method, np.full((len(self.wildtype), len(self._columns)), np.nan))
        missing = [i for i in dict.fromkeys(wanted) if self.wildtype[i] in self._columns and np.isnan(table_LA[i, 0])]
        if missing:
            if method == "clm" and not self.likelihood.has_restorer:
                raise UserError(
                    "clm asks the head with which a METRO model restores; this model has none: use wildtype"
                )
            if method == "clm" and not _restores(self.likelihood):
                raise UserError("clm asks the main model, and part is auxiliary; leave part out, or use wildtype")
            ask = self.likelihood.masked if method == "masked" else self.likelihood.seen
            logp_PA = ask([self._letters], [missing])[0].astype(np.float64)
            own_P = logp_PA[np.arange(len(missing)), [self._columns[self.wildtype[i]] for i in missing]]
            table_LA[missing] = logp_PA - own_P[:, None]
        return table_LA[wanted]

    def score(self, method: str, variants: Sequence[Variant]) -> np.ndarray:
        """(N,) float64, higher is fitter; 0 for the wild type itself.

        Raises UserError for a method that there is not, that this model cannot be asked for, or that cannot score one
        of the variants, which is named.
        """
        if method not in METHODS or method == "average":
            raise UserError(f"there is no method {method!r}; choose from {', '.join(METHODS)}")
        if not METHODS[method].indels:
            self._check_substitutions(method, variants)
        if METHODS[method].table:
            places = sorted({place for variant in variants for place, _ in _sites(variant)})
            row = dict(zip(places, self.table(method, places), strict=True))
            return np.array([sum(row[i][self._columns[a]] for i, a in _sites(v)) for v in variants], dtype=np.float64)
        if method in ("pll", "pll_fast"):
            return self._likelihoods(method, variants)
        return self._mutants(variants) if method == "mutant" else self._ratios(variants)

    def cost(self, method: str, variants: Sequence[Variant]) -> int:
        """Letters that are read for these variants: what the time goes by."""
        length = len(self.wildtype)
        window = min(length, self.likelihood.max_length or length)
        distinct = {variant.changes for variant in variants} | {()}
        masks = len({change.start for changes in distinct for change in changes})
        if METHODS[method].table:
            return masks * window if method == "masked" else length
        if METHODS[method].indels:
            return len(distinct) * length * (window if method == "pll" else 1)
        changed = sum(1 for variant in variants if variant.changes)
        return changed * length + (masks * window + length if method == "rtd" else 0)

    def agreement(
        self, method: str, variants: Sequence[Variant], score_N: np.ndarray, budget: int | None
    ) -> tuple[float, int] | None:
        """Spearman correlation of an approximation's scores with those of the exact method, and over how many variants.

        Variants are drawn (always the same ones) as long as the exact method reads at most `budget` letters for them;
        all are taken where it is None. None for a method that is exact, where the exact one cannot score these
        variants, where all score alike, and where fewer than ten variants can be afforded.
        """
        exact = METHODS[method].approximates
        if not exact or not can_score(exact, variants):
            return None
        order = np.random.default_rng(0).permutation(len(variants)).tolist()
        low, high = 0, len(order)
        while low < high:  # the most that can be afforded: cost grows with every variant
            middle = (low + high + 1) // 2
            affordable = budget is None or self.cost(exact, [variants[i] for i in order[:middle]]) <= budget
            low, high = (middle, high) if affordable else (low, middle - 1)
        chosen = order[:low]
        if len(chosen) < FEWEST:
            return None
        return rank_correlation(score_N[chosen], self.score(exact, [variants[i] for i in chosen]))

    def _check_substitutions(self, method: str, variants: Sequence[Variant]) -> None:
        for variant in variants:
            if not variant.substitutions:
                raise UserError(
                    f"{_place(variant)}{variant.name}: {method} scores substitutions only; pll and pll_fast "
                    "take insertions and deletions"
                )
            for place, _ in _sites(variant):
                if self.wildtype[place] not in self._columns:
                    raise UserError(
                        f"{_place(variant)}{variant.name}: the wild type has no standard residue there "
                        f"({self.wildtype[place]!r}), so that there is nothing to compare with"
                    )

    def _mutants(self, variants: Sequence[Variant]) -> np.ndarray:
        """Of every variant one pass, told at its substitutions."""
        scores: list[float] = []
        for block in self._blocks([variant.changes for variant in variants]):
            tables = self.likelihood.seen([self._applied(changes) for changes in block], _starts(block))
            for changes, table_PA in zip(block, tables, strict=True):
                rows = zip(table_PA.astype(np.float64), changes, strict=True)
                scores.append(sum(row_A[self._columns[c.letters]] - row_A[self._own(c)] for row_A, c in rows))
        return np.array(scores, dtype=np.float64)

    def _ratios(self, variants: Sequence[Variant]) -> np.ndarray:
        if not self.likelihood.has_detector:
            raise UserError("rtd needs a detector of replaced residues; models pretrained with METRO have one")
        if self.likelihood.part == "main":
            raise UserError("rtd asks the auxiliary too, and part is main; leave part out")
        places = sorted({place for variant in variants for place, _ in _sites(variant)})
        proposed = self.likelihood.masked([self._letters], [places])[0].astype(np.float64)
        proposed /= float(self.likelihood.bundle.recipe.get("metro", {}).get("temperature", 1.0))  # as it was sampled
        own = self.likelihood.detected([self._letters], [places])[0].astype(np.float64)
        number = {place: row for row, place in enumerate(places)}
        scores: list[float] = []
        for block in self._blocks([variant.changes for variant in variants]):
            found = self.likelihood.detected([self._applied(changes) for changes in block], _starts(block))
            for changes, logit_P in zip(block, found, strict=True):
                score = 0.0
                for change, logit in zip(changes, logit_P.tolist(), strict=True):
                    row = number[change.start]
                    gained = proposed[row, self._columns[change.letters]] - proposed[row, self._own(change)]
                    score += gained - (logit - own[row])
                scores.append(score)
        return np.array(scores, dtype=np.float64)

    def _likelihoods(self, method: str, variants: Sequence[Variant]) -> np.ndarray:
        """Sums over residues, minus the wild type's; what comes twice is read once."""
        wanted = dict.fromkeys([(), *(variant.changes for variant in variants)])
        ask = self.likelihood.masked if method == "pll" else self.likelihood.seen
        for block in self._blocks([changes for changes in wanted if (method, changes) not in self._sums]):
            sequences = [self._applied(changes) for changes in block]
            places = [[i for i, letter in enumerate(s.decode()) if letter in self._columns] for s in sequences]
            for changes, sequence, some, table_PA in zip(block, sequences, places, ask(sequences, places), strict=True):
                columns = [self._columns[chr(sequence[place])] for place in some]
                logp_P = table_PA[np.arange(len(some)), columns].astype(np.float64)
                if method == "pll_fast" and not _restores(self.likelihood):
                    logp_P = _unseen(logp_P, len(self._columns))
                self._sums[method, changes] = float(logp_P.sum())
        own = self._sums[method, ()]
        return np.array([self._sums[method, variant.changes] - own for variant in variants])

    def _blocks(self, every: Sequence[tuple[Change, ...]]) -> Iterator[Sequence[tuple[Change, ...]]]:
        """So many at a time that their sequences, and what is said of them, take little memory."""
        step = max(1, _BLOCK // len(self.wildtype))
        for start in range(0, len(every), step):
            yield every[start : start + step]

    def _applied(self, changes: Sequence[Change]) -> bytes:
        return apply(changes, self.wildtype).encode()

    def _own(self, change: Change) -> int:
        """The column of the residue that a substitution replaces."""
        return self._columns[self.wildtype[change.start]]


def can_score(method: str, variants: Sequence[Variant]) -> bool:
    """Whether a method takes what these variants change: insertions and deletions are for likelihoods only."""
    return METHODS[method].indels or all(variant.substitutions for variant in variants)


def rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> tuple[float, int] | None:
    """Spearman correlation of (N,) values, and over how many places: those where both are finite. None where these are
    fewer than three, or either is the same in all."""
    from scipy.stats import spearmanr

    both = np.isfinite(a_N) & np.isfinite(b_N)
    count = int(both.sum())
    if count < 3 or np.ptp(a_N[both]) == 0 or np.ptp(b_N[both]) == 0:
        return None
    return float(spearmanr(a_N[both], b_N[both]).statistic), count


def average(scores: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) float64 in (0, 1]: the mean over methods of each variant's rank, ties at their mean rank, divided by N."""
    from scipy.stats import rankdata

    return np.mean([rankdata(score_N) / len(score_N) for score_N in scores], axis=0)


def _restores(likelihood: Likelihood) -> bool:
    """Whether letters that are seen are read by the main model of METRO, and not as a masked language model does."""
    return likelihood.has_restorer and likelihood.part != "auxiliary"


def _unseen(logu_P: np.ndarray, letters: int) -> np.ndarray:
    """log p from log u, see the module's docstring."""
    return logu_P - np.log(letters + 1 - letters * np.exp(np.minimum(logu_P, 0.0)))


def _sites(variant: Variant) -> list[tuple[int, str]]:
    return [(change.start, change.letters) for change in variant.changes]


def _starts(block: Sequence[tuple[Change, ...]]) -> list[list[int]]:
    return [[change.start for change in changes] for changes in block]


def _place(variant: Variant) -> str:
    return f"{variant.where}: " if variant.where else ""


def _names_with_table() -> list[str]:
    return [name for name, method in METHODS.items() if method.table]

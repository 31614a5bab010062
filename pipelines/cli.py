"""The command `verticals VERB APPLICATION`: reads arguments, calls the verb, prints its result.

Results go to stdout (`--json` for machines), progress and logs to stderr. Exit code 0 is done, 1 a failed gate or a
refused input, 2 misuse. Verbs are imported when called: `--help` and `list` load nothing heavy.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

VERBS = ("list", "data", "train", "evaluate", "predict", "compress", "export", "bench", "release", "serve")


def parser() -> argparse.ArgumentParser:
    """Every verb with its options, in the order of a model's life."""
    top = argparse.ArgumentParser(prog="verticals", description="Industry models from a raw file to a running service.")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str, *, application: bool = True) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        if application:
            made.add_argument("application", help="as `verticals list` names it, e.g. finance.fraud")
        made.add_argument("--json", action="store_true", help="print the result as one JSON object")
        return made

    def configured(made: argparse.ArgumentParser) -> None:
        made.add_argument("--recipe", default="default", help="named configuration (default: default)")
        made.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one setting, e.g. fit.optim.lr=3e-4",
        )

    def versioned(made: argparse.ArgumentParser) -> None:
        made.add_argument(
            "--version", default="production", help="version or alias in the registry (default: production)"
        )
        made.add_argument("--run", metavar="DIR", help="a run directory instead of a registered version")

    verb("list", "the applications", application=False)

    data = verb("data", "make, check or load an application's data")
    configured(data)
    what = data.add_mutually_exclusive_group(required=True)
    what.add_argument("--synthetic", metavar="OUT", help="write synthetic data with a known answer to this file")
    what.add_argument(
        "--check", metavar="FILE", help="read a file whole and say what is in it, or what is wrong with it"
    )
    what.add_argument(
        "--load", metavar="FILE", help="put a file's past, or a data set, into what the service keeps (resumable)"
    )
    data.add_argument("--store", metavar="URL", help="the store or index to load into (default: the service's own)")

    train = verb("train", "train a model, evaluate it and register it")
    configured(train)
    train.add_argument(
        "--data", action="append", default=[], metavar="FILE", help="train on this file (default: the recipe's data)"
    )
    train.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    train.add_argument("--runs", default="runs", metavar="DIR", help="where run directories are made (default: runs)")
    train.add_argument("--resume", metavar="RUN", help="go on with this run directory")
    train.add_argument("--processes", type=int, default=1, metavar="N", help="data-parallel processes (default: 1)")
    train.add_argument(
        "--alias",
        default="candidate",
        choices=("candidate", "production", "none"),
        help="name the version gets in the registry; none: do not register (default: candidate)",
    )

    evaluate = verb(
        "evaluate", "figures with intervals, of a version on the data it was trained from or on another file"
    )
    versioned(evaluate)
    evaluate.add_argument("-i", "--input", metavar="FILE", help="evaluate every labelled day of this file")
    evaluate.add_argument("--split", default="test", choices=("validation", "test"), help="which days (default: test)")
    evaluate.add_argument("--report", metavar="HTML", help="write the report with plots here")

    predict = verb("predict", "answer a file, in bounded memory")
    versioned(predict)
    predict.add_argument(
        "-i",
        "--input",
        metavar="FILE",
        help="a table; a scan (.nii.gz, zip or folder of DICOM); a picture, or a folder of them",
    )
    predict.add_argument(
        "-o", "--output", metavar="FILE", help=".parquet, .csv or .jsonl; of scans and pictures a new folder"
    )
    predict.add_argument("--dry-run", action="store_true", help="promise memory and time, and answer nothing")
    predict.add_argument("--from-dicomweb", metavar="URL", help="fetch the input from this archive (DICOMweb)")
    predict.add_argument("--study", metavar="UID", help="what to fetch")
    predict.add_argument("--series", metavar="UID", help="one series of the study, where it has several")
    predict.add_argument("--store", action="store_true", help="send the answer back to the archive")
    predict.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="how to read the file, e.g. data.columns.amount=AMT",
    )

    compress = verb("compress", "a smaller, faster model, and what it costs", application=False)
    compress.add_argument(
        "model", metavar="MODEL", help="run directory, APPLICATION[:VERSION], or a model file (.onnx, .xml)"
    )
    compress.add_argument("--prune", type=float, default=0.0, metavar="SHARE", help="share of the channels that goes")
    compress.add_argument("--importance", default="group", metavar="I", help="l1 or group (default: group)")
    compress.add_argument("--bits", type=int, default=8, help="8 quantizes, 32 does not (default: 8)")
    compress.add_argument("--method", help="dynamic, static or weights (default: what suits the network)")
    compress.add_argument("--teacher", metavar="RUN", help="run that the network learns from while it recovers")
    compress.add_argument(
        "--max-score-drop", type=float, default=0.01, metavar="D", help="of the validation score (default: 0.01)"
    )
    compress.add_argument("--format", metavar="F", help="onnx or openvino (default: what suits the method)")
    compress.add_argument("--form", help="form of the network (default: the application's first)")
    compress.add_argument(
        "--precision", default="float32", metavar="P", help="float32 or bfloat16: what is not int8 (default: float32)"
    )
    compress.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N (default: auto)")
    compress.add_argument("-o", "--output", metavar="DIR", help="default: compressed/APPLICATION/NAME")
    compress.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of the recovery"
    )

    def sampled(made: argparse.ArgumentParser) -> None:
        made.add_argument("-i", "--input", metavar="FILE", help="take the samples from this labelled file")
        made.add_argument("--split", default="test", choices=("validation", "test"), help="which days (default: test)")

    export = verb("export", "write a model for a runtime, once it is shown to answer the same", application=False)
    export.add_argument("model", metavar="MODEL", help="run directory, or APPLICATION[:VERSION]")
    export.add_argument(
        "--format", default="onnx", metavar="F", help="torch, onnx, openvino or tensorrt (default: onnx)"
    )
    export.add_argument("--form", help="form of the network (default: the application's first)")
    export.add_argument(
        "--precision", default="float32", metavar="P", help="float32, bfloat16 or float16 (default: float32)"
    )
    export.add_argument("-o", "--output", metavar="DIR", help="the artifact (default: artifacts/APPLICATION/...)")
    sampled(export)
    export.add_argument(
        "--alias", default="none", choices=("candidate", "production", "none"), help="register it (default: none)"
    )
    export.add_argument("--check", metavar="ARTIFACT", help="compare this artifact again; nothing is written")

    bench = verb("bench", "latency, throughput, size, memory and score of models, in turns", application=False)
    bench.add_argument("models", nargs="+", metavar="MODEL", help="runs, artifacts or APPLICATION[:VERSION]")
    bench.add_argument("--requests", type=int, default=500, help="single requests to time (default: 500)")
    bench.add_argument(
        "--batches", type=int, nargs="+", default=[1, 32, 256], metavar="N", help="items a call (1 32 256)"
    )
    bench.add_argument(
        "--threads", type=int, nargs="+", default=[1], metavar="N", help="threads of a call (default: 1)"
    )
    sampled(bench)
    bench.add_argument("--no-score", dest="score", action="store_false", help="leave the scores out")

    release = verb("release", "versions and their names: promote one, or change its threshold, without a redeploy")
    release.add_argument("--version", help="the version to name; without it the versions are listed")
    release.add_argument("--alias", default="production", choices=("candidate", "production"))
    release.add_argument(
        "--threshold",
        metavar="SCORE",
        help="decide at this score from now on, none: at the model's own (with --version or for the alias)",
    )

    serve = verb("serve", "serve a vertical, e.g. `verticals serve finance`", application=False)
    serve.add_argument("vertical")
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=3000)
    serve.add_argument(
        "--train-if-missing", action="store_true", help="train on synthetic data first where no version is registered"
    )
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the return value is its exit code."""
    given = parser().parse_args(arguments)
    from core.errors import ConfigError, VerticalsError

    options = vars(given)
    verb, as_json = options.pop("verb"), options.pop("json")
    before = signal.getsignal(signal.SIGTERM)
    if verb != "serve":  # ended by a service manager, a command clears up what it unpacked, as after Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if verb == "list":
            from verticals import APPLICATIONS

            result: Mapping[str, Any] = dict(APPLICATIONS)
        else:
            result = getattr(import_module(f"pipelines.{verb}"), verb)(
                **{key.replace("set", "settings") if key == "set" else key: value for key, value in options.items()}
            )
    except ConfigError as error:
        return _fail(error, as_json, 2)
    except VerticalsError as error:
        return _fail(error, as_json, 1)
    except OSError as error:  # a full or read-only disk, a path that is none
        return _fail(error, as_json, 1)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    try:
        if as_json:
            print(json.dumps(result, ensure_ascii=False))
        else:
            print(result.get("text") or "\n".join(f"{key:<24} {value}" for key, value in result.items()))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has read enough: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int(result.get("exit_code", 0))


def _fail(error: Exception, as_json: bool, code: int) -> int:
    if as_json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}, ensure_ascii=False))
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

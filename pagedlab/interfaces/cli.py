"""The `pagedlab` command. Subcommands import what they need when they run, so that --help is instant."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pagedlab.errors import PagedlabError
from pagedlab.interfaces.terminal import print_stream, read_input, read_line, stop_on_interrupt

if TYPE_CHECKING:
    from pagedlab.interfaces.llm import LLM
    from pagedlab.sampling_params import SamplingParams

Handler = Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit status: 0, 1 for a refusal (one sentence on stderr), 130 for Ctrl-C."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    arguments.rest = rest
    if rest and arguments.handler is not run_bench:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if hasattr(sys.stdout, "reconfigure"):  # where output is ASCII, as in some pipes, é becomes ?
        sys.stdout.reconfigure(errors="replace")
    try:
        return arguments.handler(arguments)
    except PagedlabError as error:
        print(f"pagedlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `pagedlab generate ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:  # a full disk behind `> file`
        print(f"pagedlab: {error}", file=sys.stderr)
        with contextlib.suppress(OSError, AttributeError):  # what is left in the buffer would fail again at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    from pagedlab import __version__

    parser = argparse.ArgumentParser(prog="pagedlab", description="LLM inference with a paged KV cache.")
    parser.add_argument("--version", action="version", version=f"pagedlab {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, summary: str, handler: Handler, examples: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="examples:\n" + examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(handler=handler)
        return sub

    command("doctor", "check this machine: packages, CPU, GPU, memory, disk, model", run_doctor, "  pagedlab doctor")

    models = command(
        "models",
        "list the models that are here and the architectures that can run, or fetch a model",
        run_models,
        "  pagedlab models\n"
        "  pagedlab models --fetch                                   # the default model\n"
        "  pagedlab models --fetch HuggingFaceTB/SmolLM2-360M-Instruct",
    )
    models.add_argument("--fetch", nargs="?", const="", metavar="MODEL", help="put a model on this machine")

    generate = command(
        "generate",
        "complete a text, written out as it is generated",
        run_generate,
        '  pagedlab generate "The capital of France is" --max-tokens 8\n'
        '  pagedlab generate "Once upon a time" --temperature 0.8 --seed 7\n'
        '  echo "def fib(n):" | pagedlab generate',
    )
    generate.add_argument("prompt", nargs="?", help="the text; read from standard input if it is left out")
    add_model_options(generate)
    add_sampling_options(generate, max_tokens=64)

    chat = command(
        "chat",
        "talk to the model; one question on the command line, or a conversation",
        run_chat,
        '  pagedlab chat "What is a KV cache?"\n'
        "  pagedlab chat                                # Ctrl-C stops an answer, /reset forgets, /exit ends\n"
        '  pagedlab chat --system "Answer in one word."',
    )
    chat.add_argument("question", nargs="?", help="ask this alone; without it a conversation starts")
    chat.add_argument("--system", help="system message in place of the chat template's own")
    add_model_options(chat)
    add_sampling_options(chat, max_tokens=512)

    serve = command(
        "serve",
        "answer OpenAI's HTTP API",
        run_serve,
        "  pagedlab serve\n"
        "  pagedlab serve --port 8001 --api-key secret --rate-limit 60/minute\n"
        "  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\\n"
        '       -d \'{"prompt": "The capital of France is", "max_tokens": 8}\'',
    )
    from pagedlab.interfaces.openai_server.arguments import add_serve_options

    add_serve_options(serve)

    demo = command(
        "demo",
        "watch requests share the engine: a live view of blocks and steps",
        run_demo,
        "  pagedlab demo\n  pagedlab demo --short",
    )
    demo.add_argument("--short", action="store_true", help="a few seconds only")
    add_model_options(demo)

    kernels = command(
        "kernels",
        "compile the Triton kernels, with no GPU, and show registers and shared memory",
        run_kernels,
        "  pagedlab kernels\n  pagedlab kernels --arch 90 --json",
    )
    kernels.add_argument("--arch", nargs="+", default=["80", "90"], help="compute capabilities (default 80 90)")
    kernels.add_argument("--json", action="store_true", help="print JSON instead of a table")

    from pagedlab.course.commands import add_course_commands

    add_course_commands(command)

    # bench has commands of its own: everything behind its name goes to pagedlab.bench.cli, --help too.
    bench = commands.add_parser("bench", help="measure the engine against peers and the physical limit", add_help=False)
    bench.set_defaults(handler=run_bench)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", help="directory or Hugging Face id; left out: SmolLM2-135M-Instruct")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda")
    group.add_argument("--attention-backend", default="auto", help="auto, reference, sdpa or triton")


def add_sampling_options(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help=f"most new tokens (default {max_tokens})")
    group.add_argument("--temperature", type=float, default=0.0, help="0, the default, always takes the best token")
    group.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest tokens up to this probability")
    group.add_argument("--top-k", type=int, default=0, help="keep this many of the likeliest tokens; 0 keeps all")
    group.add_argument("--seed", type=int, help="makes the draw repeatable")
    group.add_argument("--stop", action="append", help="end before this text; may be given more than once")


def run_doctor(arguments: argparse.Namespace) -> int:
    from pagedlab.interfaces import doctor

    checks = doctor.run_doctor()
    doctor.print_doctor(checks)
    return 0 if doctor.all_pass(checks) else 1


def run_models(arguments: argparse.Namespace) -> int:
    from pagedlab.model_authoring.models import provision

    if arguments.fetch is not None:
        print(provision.resolve_model(arguments.fetch or None))
        return 0
    found = provision.locate_default()
    where = f"{found.path}  ({found.source})" if found else "not here yet: pagedlab models --fetch"
    print(f"Default model\n  {provision.DEFAULT_MODEL}\n  {where}\n")
    models = provision.local_models()
    print(f"Models in {provision.pagedlab_home() / 'models'}")
    print("".join(f"  {path.name}\n" for path in models) or "  none\n")
    from pagedlab.model_authoring.models.registry import ARCHITECTURES

    print("Architectures\n" + "\n".join(f"  {name}" for name in sorted(ARCHITECTURES)))
    return 0


def run_generate(arguments: argparse.Namespace) -> int:
    params = sampling_params(arguments)  # refused, if so, before the model is loaded
    prompt = read_input(lambda: sys.stdin.read()) if arguments.prompt is None else arguments.prompt
    print_stream(open_llm(arguments), prompt, params)
    return 0


def run_chat(arguments: argparse.Namespace) -> int:
    params = sampling_params(arguments)
    llm = open_llm(arguments)
    opening = [{"role": "system", "content": arguments.system}] if arguments.system else []
    if arguments.question is not None:
        answer(llm, [*opening, {"role": "user", "content": arguments.question}], params)
        return 0
    messages = list(opening)
    while (text := read_line("> ")) not in (None, "/exit"):
        if text == "/reset":
            messages = list(opening)
        elif text:
            messages.append({"role": "user", "content": text})
            try:
                with stop_on_interrupt() as was_interrupted:
                    messages.append({"role": "assistant", "content": answer(llm, messages, params, was_interrupted)})
            except PagedlabError as error:  # too long a conversation, say: it ends the turn, not the program
                messages.pop()
                print(f"{error} (/reset starts afresh)", file=sys.stderr)
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    from pagedlab.interfaces.openai_server.arguments import run

    return run(arguments)


def run_demo(arguments: argparse.Namespace) -> int:
    from pagedlab.interfaces.demo import run_demo as run

    return run(arguments)


def run_kernels(arguments: argparse.Namespace) -> int:
    from pagedlab.runtime.kernels.compile_report import main as run

    return run(["--arch", *arguments.arch, *(["--json"] if arguments.json else [])])


def run_bench(arguments: argparse.Namespace) -> int:
    from pagedlab.bench.cli import main as run

    return run(arguments.rest)


def open_llm(arguments: argparse.Namespace) -> LLM:
    from pagedlab.interfaces.llm import LLM

    return LLM(
        arguments.model,
        dtype=arguments.dtype,
        device=arguments.device,
        attention_backend=arguments.attention_backend,
    )


def sampling_params(arguments: argparse.Namespace) -> SamplingParams:
    from pagedlab.sampling_params import SamplingParams

    return SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        stop=arguments.stop,
    )


def answer(
    llm: LLM, messages: list[dict[str, str]], params: SamplingParams, is_enough: Callable[[], bool] = lambda: False
) -> str:
    """Print the model's reply while it is generated, and return it."""
    text = llm.apply_chat_template(messages)
    # The template has written every special token itself: as ids, no tokenizer can add a second BOS.
    prompt: Any = {"prompt": text, "prompt_token_ids": llm.get_tokenizer().encode(text, add_special_tokens=False)}
    return print_stream(llm, prompt, params, is_enough)


if __name__ == "__main__":
    sys.exit(main())

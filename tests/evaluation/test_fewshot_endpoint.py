"""Few-shot prompting of an endpoint: with a fake client, and the real one on a local server."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from layouts import QUESTIONS, write_layouts

from masktuning import evaluate
from masktuning.config.errors import UsageError
from masktuning.evaluation.fewshot import endpoint, run
from masktuning.evaluation.fewshot.answers import FILE
from masktuning.evaluation.fewshot.endpoint import EndpointScorer

KEY = "sk-a-secret-of-the-test"
SAID = {"What is": " Yes.\n", "How do": "NO", "Is 5": "maybe", "Who won": "", "Café": "no"}
WANTED = ["duplicate", "not_duplicate", None, None, "not_duplicate"]


class FakeError(Exception):
    """What the client raises when its retries are over."""


class FakeClient:
    """Answers as SAID says, and notes what it was asked for; fails from some request on."""

    api_key = KEY

    def __init__(self, fails_after=None):
        self.asked, self.fails_after = [], fails_after
        self.completions = SimpleNamespace(create=self.complete)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self.chatted))
        self.lock = threading.Lock()

    def complete(self, prompt, **request):
        return SimpleNamespace(choices=[SimpleNamespace(text=self.answer(prompt, request))])

    def chatted(self, messages, **request):
        (message,) = messages
        assert message["role"] == "user"
        text = self.answer(message["content"], request) or None
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=text))])

    def answer(self, prompt, request):
        with self.lock:
            self.asked.append((prompt, request))
            if self.fails_after is not None and len(self.asked) > self.fails_after:
                raise FakeError(f"Incorrect API key\nprovided: {KEY}")
        return said(prompt)


def said(prompt):
    """The answer to the last text of a prompt."""
    last = prompt.rpartition("\n\n")[2]
    return next(answer for start, answer in SAID.items() if last.startswith(start))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("data"))


def use(monkeypatch, client, chat=False):
    scorer = EndpointScorer(client, (FakeError,), "m", "http://nowhere", chat)
    monkeypatch.setattr(run, "endpoint_scorer", lambda options: scorer)


def ask(data, out, *words, backend="completions"):
    """results.json of one call of the command."""
    evaluate.main(
        ["--predictor", "fewshot", "--fewshot_model", "m", "--fewshot_backend", backend]
        + ["--task", "qqp", "--sets", "dev", "--data_dir", str(data), "--shots", "2"]
        + ["--output_dir", str(out), *words]
    )
    return json.loads((out / "results.json").read_text())


def predictions(folder):
    lines = (folder / "predictions_dev.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("backend", ["completions", "chat"])
def test_answers_are_matched_and_asked_for_once(data, tmp_path, monkeypatch, caplog, backend):
    client = FakeClient()
    use(monkeypatch, client, chat=backend == "chat")
    results = ask(data, tmp_path, backend=backend)
    found = predictions(tmp_path)
    assert [one["prediction"] for one in found] == WANTED
    assert found[0]["probabilities"] == {"not_duplicate": 0.0, "duplicate": 1.0}
    assert found[2]["probabilities"] == {"not_duplicate": 0.0, "duplicate": 0.0}
    correct = [one["prediction"] == one["label"] for one in found]
    assert results["eval_dev_accuracy"] == sum(correct) / 5 == 3 / 5
    assert results["eval_dev_no_label"] == 2 / 5
    assert results["eval_dev_f1"] == 2 / 3, "one of two duplicates is found, and nothing else"
    assert "dev: 2 of 5 answers are no label, such as 'maybe', and count as wrong" in caplog.text
    assert len(client.asked) == len(QUESTIONS)
    for prompt, request in client.asked:
        assert prompt.endswith("Are these two questions asking the same thing?\nAnswer: ")
        assert prompt.count("Answer: yes\n\n") == prompt.count("Answer: no\n\n") == 2
        assert request == {"model": "m", "temperature": 0, "stop": ["\n\n"], "max_tokens": 7}
    assert ask(data, tmp_path, backend=backend) == results
    assert len(client.asked) == len(QUESTIONS), "the second run asked again"


def test_a_failure_keeps_what_was_answered_and_the_next_run_goes_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    client = FakeClient(fails_after=3)
    use(monkeypatch, client)
    with pytest.raises(UsageError, match=r"m: the endpoint failed: .* same command contin") as e:
        ask(data, tmp_path)
    assert "\n" not in str(e.value) and KEY not in str(e.value) and "provided: ***" in str(e.value)
    assert len(client.asked) == 4, "nothing is asked after a failure"
    assert len((tmp_path / FILE).read_text().splitlines()) == 3
    assert not (tmp_path / "results.json").exists()
    again = FakeClient()
    use(monkeypatch, again)
    ask(data, tmp_path)
    assert len(again.asked) == 2 and [one["prediction"] for one in predictions(tmp_path)] == WANTED


def test_another_model_or_endpoint_is_asked_anew(data, tmp_path, monkeypatch):
    client = FakeClient()
    for model, url, chat in (
        ("m", "a", False),
        ("n", "a", False),
        ("n", "b", False),
        ("n", "b", True),
    ):
        scorer = EndpointScorer(client, (), model, url, chat)
        monkeypatch.setattr(run, "endpoint_scorer", lambda options, scorer=scorer: scorer)
        ask(data, tmp_path)
    assert len(client.asked) == 4 * len(QUESTIONS)


NUMBER = SimpleNamespace(text=3)


@pytest.mark.parametrize("choices", [None, [], [NUMBER], [SimpleNamespace()]])
def test_a_reply_in_another_form_is_a_failure(data, tmp_path, monkeypatch, choices):
    client = FakeClient()
    client.completions.create = lambda **_: SimpleNamespace(choices=choices)
    use(monkeypatch, client)
    with pytest.raises(UsageError, match="its reply is no completion"):
        ask(data, tmp_path)


def test_a_dry_run_estimates_without_key_and_client(data, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "openai", None)
    words = ["--predictor", "fewshot", "--fewshot_model", "m", "--fewshot_backend", "chat"]
    words += ["--task", "qqp", "--sets", "dev", "--data_dir", str(data), "--shots", "2"]
    evaluate.main([*words, "--dry_run"])
    printed = capsys.readouterr().out
    assert "estimated: one for every 4 characters" in printed
    with pytest.raises(UsageError, match=r"openai is missing: pip install 'masktuning\[fewshot\]'"):
        ask(data, tmp_path)
    client = FakeClient()
    use(monkeypatch, client)
    ask(data, tmp_path)
    tokens = sum(-(-len(prompt) // 4) for prompt, _ in client.asked)
    assert printed.splitlines()[2].split() == ["dev", "5", "0", "5", str(tokens)]


# The real client


class Handler(BaseHTTPRequestHandler):
    """An endpoint that behaves as the server's `behaviour` says."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], request))
        code, kind, body = 200, "application/json", None
        prompt = request.get("prompt") or request["messages"][0]["content"]
        match self.server.behaviour:
            case "slow":
                time.sleep(1.5)
            case "broken" if len(self.server.asked) > self.server.healthy:
                code, body = 500, '{"error": {"message": "overloaded"}}'
            case "refusing":
                code, body = 401, json.dumps({"error": {"message": f"wrong key {KEY}"}})
            case "page":
                kind, body = "text/html", "<html>welcome</html>"
            case "not json":
                body = "{"
        if body is None:
            choice = {"index": 0, "finish_reason": "stop", "text": said(prompt)}
            choice["message"] = {"role": "assistant", "content": choice["text"]}
            body = json.dumps({"id": "1", "object": "x", "created": 1, "model": "m",
                               "choices": [choice]})  # fmt: skip
        try:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body.encode())))
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(body.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client did not wait

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("openai")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.behaviour, server.healthy = [], "healthy", 0
        server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("backend", ["completions", "chat"])
def test_the_real_client_asks_what_the_interface_wants(server, data, tmp_path, backend, capsys):
    ask(data, tmp_path, "--fewshot_base_url", server.url, backend=backend)
    assert [one["prediction"] for one in predictions(tmp_path)] == WANTED
    path = "/v1/completions" if backend == "completions" else "/v1/chat/completions"
    assert {(where, key) for where, key, _ in server.asked} == {(path, f"Bearer {KEY}")}
    assert len(server.asked) == len(QUESTIONS)
    request = server.asked[0][2]
    assert (request["temperature"], request["stop"], request["model"]) == (0, ["\n\n"], "m")
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    printed = capsys.readouterr()
    assert KEY.encode() not in written and KEY not in printed.out + printed.err


def test_a_broken_endpoint_is_tried_a_few_times(server, data, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    server.behaviour, server.healthy = "broken", 2
    with pytest.raises(UsageError, match=r"the endpoint failed: Error code: 500.*overloaded"):
        ask(data, tmp_path)
    assert len(server.asked) == 2 + 3, "a request and two retries"
    assert len((tmp_path / FILE).read_text().splitlines()) == 2
    server.behaviour = "healthy"
    ask(data, tmp_path)
    assert len(server.asked) == 5 + 3 and [p["prediction"] for p in predictions(tmp_path)] == WANTED


@pytest.mark.parametrize(
    ("behaviour", "message", "tries"),
    [
        ("slow", "Request timed out", 3),
        ("refusing", r"wrong key \*\*\*", 1),
        ("page", "its reply is no completion: '<html>", 1),
        ("not json", "the endpoint failed: ", 1),
    ],
)
def test_failures_of_the_real_client(
    server, data, tmp_path, monkeypatch, behaviour, message, tries
):
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    if behaviour == "slow":
        monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.5)
    server.behaviour = behaviour
    with pytest.raises(UsageError, match=message) as caught:
        ask(data, tmp_path, "--fewshot_base_url", server.url)
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    assert len(server.asked) == tries


def test_without_a_key_nothing_is_asked(server, data, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UsageError, match="set the environment variable OPENAI_API_KEY"):
        ask(data, tmp_path, "--fewshot_base_url", server.url)
    assert not server.asked

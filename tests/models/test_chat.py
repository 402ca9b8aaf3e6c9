"""Chat templates are programs of others: whatever they do is one line, soon and within memory."""

import copy
import resource
import signal
import threading
import time

import pytest

from ugap.errors import InputError
from ugap.models import chat
from ugap.models.chat import chat_ids

MESSAGES = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def with_template(tokenizer):
    def make(template):
        own = copy.deepcopy(tokenizer)
        own.chat_template = template
        return own

    return make


def test_a_chat_goes_through_the_template(with_template):
    own = with_template(
        "{% for m in messages %}<|im_end|>{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert own.decode(chat_ids(own, MESSAGES, "tiny")) == "<|im_end|>Tell me a story.<eos>>"


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ nothing.at.all }}", "'nothing' is undefined"),
        ("{{ raise_exception('Only users may speak.') }}", "Only users may speak."),
        ("{{ messages[7]['content'] }}", "has no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ range(10**9) }}", "Range too big"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "."),
        ("{{ '\ud800' }}", "."),
        ("{{ 'x'*10**9 }}", "takes more than 512 MB of memory"),
        ("{{ ['x'*1000]*10**9 }}", "takes more than 512 MB of memory"),
        ("{{ '%1000000000d' % 1 }}", "takes more than 512 MB of memory"),
        ("{{ 'x'.ljust(10**9) }}", "takes more than 512 MB of memory"),
        ("{{ 'x'*20000000 }}", "it makes 20,000,000 characters of the chat"),
    ],
)
def test_a_template_that_fails_is_one_line(with_template, template, cause):
    with pytest.raises(InputError, match=cause) as caught:
        chat_ids(with_template(template), MESSAGES, "tiny")
    message = str(caught.value)
    assert message.startswith("tiny: the chat template fails: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(99) %}{% endfor %}" + "{% endfor %}" * 2,
        "{{ 10**(10**8) }}",
    ],
)
def test_a_template_that_takes_its_time_is_stopped(with_template, monkeypatch, template):
    monkeypatch.setattr(chat, "SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"tiny: the chat template fails: it takes more than 0\.3 seconds"):
        chat_ids(with_template(template), MESSAGES, "tiny")
    assert time.monotonic() - begin < 5


def test_limits_and_alarms_are_left_as_they_were(with_template):
    def rings(number, frame):
        raise AssertionError

    limits, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, rings)
    signal.setitimer(signal.ITIMER_REAL, 1000, 7)
    try:
        chat_ids(with_template("{{ messages[0]['content'] }}"), MESSAGES, "tiny")
        with pytest.raises(InputError):
            chat_ids(with_template("{{ 'x'*10**9 }}"), MESSAGES, "tiny")
        assert resource.getrlimit(resource.RLIMIT_AS) == limits
        assert signal.getsignal(signal.SIGALRM) is rings
        remaining, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 900 < remaining <= 1000
        assert interval == 7
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def test_other_threads_render_too(with_template):
    out = []
    own = with_template("{{ messages[0]['content'] }}")
    thread = threading.Thread(target=lambda: out.append(chat_ids(own, MESSAGES, "tiny")))
    thread.start()
    thread.join()
    assert own.decode(out[0]) == "Tell me a story."

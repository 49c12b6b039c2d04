"""A race in a tool, found on virtual time: two senders pay from one account, at times at once.

You should see that the careless tool loses a payment on some of 20 seeds, what happened on the first of
these, second by second, that it happens again on that seed, and that the careful tool passes all 20.
"""

# ruff: noqa: E402 - gevent patches the process before anything else is imported
from gevent import monkey

monkey.patch_all()

import gevent
from gevent.lock import Semaphore

from palaver import AgentConfig, ModelRequest, Reply
from palaver.simulation import World, world


class Account:
    """A balance that takes a while to write, as one in a remote service does."""

    def __init__(self, one: World) -> None:
        self.balance, self.story = 100, list[str]()
        self._one = one
        self._lock = Semaphore()

    def pay_carelessly(self, amount: int) -> str:
        """Pay an amount."""
        balance = self.balance
        self.story.append(f"{self._one.now:.2f} s: reads {balance}")
        gevent.sleep(self._one.rng.uniform(0.1, 0.5))  # others run meanwhile
        self.balance = balance - amount
        self.story.append(f"{self._one.now:.2f} s: writes {self.balance}")
        return f"paid {amount}"

    def pay_carefully(self, amount: int) -> str:
        """Pay an amount."""
        with self._lock:
            return self.pay_carelessly(amount)


def pay_twice(seed: int, how: str) -> Account:
    """Alice and Bob pay 10 each, within a few seconds."""

    def answer(request: ModelRequest) -> Reply:
        asked = request.messages[-1]["role"] == "user"
        return Reply(tool_calls=[(how, {"amount": 10})]) if asked else Reply("It is paid.")

    with world(seed) as one:
        account = Account(one)
        runtime = one.open(one.model(answer), tools=[getattr(account, how)])
        runtime.add_agent(AgentConfig(name="teller"))
        for sender in ("alice", "bob"):
            runtime.submit(runtime.get_or_create("teller", sender), "Pay my share.")
        one.sleep(60.0)
    return account


careless = {seed: pay_twice(seed, "pay_carelessly") for seed in range(20)}
lost = [seed for seed, account in careless.items() if account.balance != 80]
print(f"careless: a payment is lost on {len(lost)} of 20 seeds, first on seed {lost[0]}:")
print(*(f"  {line}" for line in careless[lost[0]].story), sep="\n")
print(f"the same again: {pay_twice(lost[0], 'pay_carelessly').story == careless[lost[0]].story}")
right = sum(pay_twice(seed, "pay_carefully").balance == 80 for seed in range(20))
print(f"careful: right on {right} of 20 seeds")

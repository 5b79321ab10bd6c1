"""Names for runs and logged models that were given none: an adjective, a noun and a number.

They need not be unique, only easy to say; nothing depends on them.
"""

_ADJECTIVES = (
    "able agile amber ample brave bright brisk bold calm candid clever cosmic crisp curious daring dapper "
    "deft eager early earnest exact fair fearless fine fond frank fresh gentle glad golden grand happy "
    "hardy honest humble ideal jolly jovial keen kind lively loyal lucid lucky mellow merry mighty modest "
    "neat nimble noble open patient plucky polite prime proud quick quiet rapid ready robust rustic sharp "
    "sincere smooth snappy solid spry steady stout subtle sunny sure swift tidy trusty upbeat vivid warm "
    "wise witty zesty"
).split()
_NOUNS = (
    "acorn aspen badger basil beacon beaver birch bison breeze brook canyon cedar cherry cliff clover "
    "comet condor coral crane creek dahlia delta dingo dove eagle elm ember falcon fern finch fjord "
    "forest fox gecko glade grove gull harbor hare hazel heron hill ibis iris island ivy jay juniper "
    "kestrel koala lagoon lark lemur lilac linden lotus lynx maple marten meadow moose moss newt oak "
    "oasis orca orchid otter owl panda peak pebble pine plover pond poppy prairie quail raven reef ridge "
    "river robin sage salmon seal spruce stork summit swan thistle tiger trout tulip valley violet vole "
    "walnut willow wren yak zebra"
).split()


def made_up_name(entropy: bytes) -> str:
    """A name such as `brisk-otter-417`.

    Args:
        entropy: 8 random bytes.
    """
    number = int.from_bytes(entropy[:8], "big")
    number, adjective = divmod(number, len(_ADJECTIVES))
    number, noun = divmod(number, len(_NOUNS))
    return f"{_ADJECTIVES[adjective]}-{_NOUNS[noun]}-{number % 1000}"

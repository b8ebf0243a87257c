"""English function words, which attacks on words leave alone and never put in."""

STOP_WORDS = frozenset(
    """
    a about above after again against ain all am an and any are aren as at be because been before
    being below between both but by can cannot could couldn d did didn do does doesn doing don down
    during each either else ever every few for from further had hadn has hasn have haven having he
    her here hers herself him himself his how i if in into is isn it its itself just ll m ma may me
    might mightn mine more most must mustn my myself needn neither never no none nor not now o of
    off on once only or other our ours ourselves out over own re s same shall shan she should
    shouldn so some such t than that the their theirs them themselves then there these they this
    those through to too under until up upon us ve very was wasn we were weren what when where
    whether which while who whom whose why will with without won would wouldn y yet you your yours
    yourself yourselves
    """.split()
)

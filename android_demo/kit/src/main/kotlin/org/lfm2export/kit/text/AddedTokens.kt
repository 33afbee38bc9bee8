package org.lfm2export.kit.text

/** Tokens that are found in the text before anything else happens to it: leftmost first, of several the longest. */
class AddedTokens(ids: Map<String, Int>) {
    private val byFirst: Map<Char, List<Pair<String, Int>>> =
        ids.toList().groupBy { it.first[0] }.mapValues { (_, tokens) -> tokens.sortedByDescending { it.first.length } }

    /** Call [plain] for each stretch of other text, none of them empty, and [added] for each token, in order. */
    fun split(text: String, plain: (String) -> Unit, added: (Int) -> Unit) {
        var start = 0
        var at = 0
        while (at < text.length) {
            val found = byFirst[text[at]]?.firstOrNull { (token, _) -> text.startsWith(token, at) }
            if (found == null) {
                at++
                continue
            }
            if (at > start) plain(text.substring(start, at))
            added(found.second)
            at += found.first.length
            start = at
        }
        if (start < text.length) plain(text.substring(start))
    }
}

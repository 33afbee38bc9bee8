package org.lfm2export.kit.chat

import org.lfm2export.kit.bundle.Golden
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.text.Tokenizer

/** That this library writes and splits a conversation as the bundle's own template and tokenizer do. */
object TemplateProof {
    /**
     * The template for the bundle of [golden], where [bos] is the text of the token that every conversation begins with. It
     * refuses tools if the bundle's own writes them in another way. Refusal when a golden prompt without tools comes out
     * otherwise: the model would be asked in a form it never saw.
     */
    fun proven(golden: Golden, bos: String, tokenizer: Tokenizer): ChatTemplate {
        val template = ChatTemplate(bos)
        for ((at, case) in golden.cases.withIndex()) {
            if (!tokenizer.encode(template.render(case.messages)).contentEquals(case.prompt)) {
                throw Refusal("golden case ${at + 1}: this app renders another prompt; the bundle's chat template is not LFM2's")
            }
        }
        val alike = golden.toolPrompts.all { tokenizer.encode(template.render(it.messages, it.tools)).contentEquals(it.prompt) }
        return if (alike && golden.toolPrompts.isNotEmpty()) template else ChatTemplate(bos, takesTools = false)
    }
}

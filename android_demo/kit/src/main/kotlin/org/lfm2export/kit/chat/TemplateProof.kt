package org.lfm2export.kit.chat

import org.lfm2export.kit.bundle.Golden
import org.lfm2export.kit.bundle.Refusal
import org.lfm2export.kit.text.Tokenizer

/** That this app writes and splits a conversation as the bundle's own template and tokenizer do. */
object TemplateProof {
    /** Refusal when a golden prompt comes out otherwise: the model would be asked in a form it never saw. */
    fun check(golden: Golden, template: ChatTemplate, tokenizer: Tokenizer) {
        for ((at, case) in golden.cases.withIndex()) {
            if (!tokenizer.encode(template.render(case.messages)).contentEquals(case.prompt)) {
                throw Refusal("golden case ${at + 1}: this app renders another prompt; the bundle's chat template is not LFM2's")
            }
        }
    }
}

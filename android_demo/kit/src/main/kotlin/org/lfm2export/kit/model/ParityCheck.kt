package org.lfm2export.kit.model

import kotlin.math.abs
import org.lfm2export.kit.bundle.Golden
import org.lfm2export.kit.bundle.GoldenCase

/** Of one golden case: steps whose token was the same, the largest error relative to the scale, and the verdict. */
data class CaseReport(val steps: Int, val same: Int, val error: Double, val passed: Boolean)

/** Of all of them. */
data class ParityReport(val cases: List<CaseReport>, val limit: Double, val runtime: String) {
    val passed: Boolean get() = cases.isNotEmpty() && cases.all { it.passed }

    /** For people, a line a case. */
    fun lines(): List<String> =
        cases.mapIndexed { at, case ->
            val verdict = if (case.passed) "pass" else "FAIL"
            "case ${at + 1}: $verdict, error %.2g of %.2g, ${case.same} of ${case.steps} tokens alike".format(case.error, limit)
        } + (if (passed) "parity with $runtime: proven on this device" else "parity with $runtime: FAILED")
}

/** This device's runtime against what the artifact answered where the bundle was made. */
class ParityCheck(private val session: Session, private val golden: Golden) {
    /** Replay every case. The session is left at the beginning. */
    fun run(cancelled: () -> Boolean = { false }): ParityReport {
        val reports = golden.cases.map { replay(it, cancelled) }
        session.reset()
        return ParityReport(reports, golden.maxError, golden.runtime)
    }

    /**
     * Feed a case its own tokens. A token that comes out differently is wrong unless the golden choice was closer than
     * the error allowed.
     */
    private fun replay(case: GoldenCase, cancelled: () -> Boolean): CaseReport {
        session.reset()
        var feed = case.prompt
        var worst = 0.0
        var same = 0
        var wrong = 0
        for (step in case.steps) {
            val logits = session.feed(feed, cancelled)
            for ((at, token) in step.top.withIndex()) {
                val error = abs(logits[token] - step.logits[at]) / step.scale
                if (error.isNaN() || error > worst) worst = error
                if (worst.isNaN()) break
            }
            val margin = (step.logits[0] - step.logits[1]) / step.scale
            val choice = Sampler.greedy(DoubleArray(logits.size) { logits[it].toDouble() })
            if (choice == step.top[0]) same++ else if (margin > golden.maxError) wrong++
            feed = intArrayOf(step.top[0])
        }
        return CaseReport(case.steps.size, same, worst, wrong == 0 && worst <= golden.maxError)
    }
}

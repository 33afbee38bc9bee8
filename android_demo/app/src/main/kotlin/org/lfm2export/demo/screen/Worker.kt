package org.lfm2export.demo.screen

import android.os.Handler
import android.os.Looper
import java.util.concurrent.CancellationException
import java.util.concurrent.Executors

/** One thread for everything slow, one job at a time, none of it on the screen's own thread. */
class Worker(private val onFailure: (Throwable) -> Unit) {
    private val thread = Executors.newSingleThreadExecutor()
    private val screen = Handler(Looper.getMainLooper())

    @Volatile private var cancelled = false

    /** Whether the job in progress was asked to end. */
    fun isCancelled(): Boolean = cancelled

    /** Run [job] away from the screen and [then], with its result, on it; or `onFailure` with what went wrong. */
    fun <T> run(job: () -> T, then: (T) -> Unit) {
        cancelled = false
        thread.execute {
            try {
                val result = job()
                show { then(result) }
            } catch (error: CancellationException) {
                show { onFailure(error) }
            } catch (error: Exception) {
                show { onFailure(error) }
            } catch (error: LinkageError) { // a native library that is missing, or of another version
                show { onFailure(error) }
            } catch (error: OutOfMemoryError) {
                show { onFailure(error) }
            }
        }
    }

    /** Run [action] on the screen's thread. */
    fun show(action: () -> Unit) {
        screen.post(action)
    }

    /** Ask the job in progress to end. */
    fun cancel() {
        cancelled = true
    }

    /** End the thread once [last], the final job, is done. */
    fun finish(last: () -> Unit) {
        cancel()
        thread.execute(last)
        thread.shutdown()
    }
}

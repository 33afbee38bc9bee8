package org.lfm2export.kit.bundle

import java.io.ByteArrayInputStream
import java.io.File
import java.util.concurrent.CancellationException
import java.util.zip.ZipEntry
import org.json.JSONObject
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertThrows
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder
import org.lfm2export.kit.TinyBundle
import org.lfm2export.kit.assertRefused

class UnpackerTest {
    @get:Rule val temporary = TemporaryFolder()

    private val target by lazy { File(temporary.root, "bundle") }

    private fun unpack(archive: ByteArray, unpacker: Unpacker = Unpacker()) = unpacker.unpack(ByteArrayInputStream(archive), target)

    /** Refused, and nothing is left behind, inside the target or beside it. */
    private fun refused(fragment: String, archive: ByteArray, unpacker: Unpacker = Unpacker()) {
        assertRefused(fragment) { unpack(archive, unpacker) }
        assertEquals(emptyList<File>(), temporary.root.listFiles().orEmpty().toList())
    }

    private fun entries(vararg more: Pair<String, ByteArray>): ByteArray {
        val files = TinyBundle.files()
        val index = BundleIndex.NAME to TinyBundle.index(files).toString().toByteArray()
        return TinyBundle.archive(listOf(index) + files.toList() + more)
    }

    private fun renamed(name: String) = TinyBundle.archive { files, index ->
        val content = "x".toByteArray()
        files[name] = content
        index.getJSONObject("files").put(name, TinyBundle.entry(content))
    }

    @Test fun soundArchiveIsUnpackedWhole() {
        unpack(TinyBundle.archive())
        for ((name, content) in TinyBundle.files()) assertArrayEquals(content, File(target, name).readBytes())
        TinyBundle.open(target)
    }

    @Test fun newBundleReplacesTheOldOne() {
        target.mkdirs()
        File(target, "old").writeText("old")
        unpack(TinyBundle.archive())
        assertFalse(File(target, "old").exists())
    }

    @Test fun refusedBundleLeavesTheOldOneAlone() {
        target.mkdirs()
        File(target, "old").writeText("old")
        assertRefused("not listed") { unpack(entries("extra" to ByteArray(1))) }
        assertEquals("old", File(target, "old").readText())
    }

    @Test fun namesThatLeaveTheFolderAreRefused() {
        val names = listOf("../evil", "a/../../evil", "/evil", "a//b", "a/", "./a", "a\\..\\b", "C:evil", ".hidden", "a\u0000b", "ä", "")
        for (name in names) refused("not a file name", renamed(name))
    }

    @Test fun veryLongNamesAreRefused() = refused("not a file name", renamed("a".repeat(201)))

    @Test fun traversalThatTheIndexDoesNotListIsRefused() = refused("not listed", entries("../evil" to ByteArray(3)))

    @Test fun sameNameTwiceIsRefused() = refused("twice", entries("model.pte" to TinyBundle.files().getValue("model.pte")))

    @Test fun indexTwiceIsRefused() = refused("not listed", entries(BundleIndex.NAME to "{}".toByteArray()))

    @Test fun compressedEntriesAreRefused() {
        val files = TinyBundle.files()
        val index = BundleIndex.NAME to TinyBundle.index(files).toString().toByteArray()
        val stored = TinyBundle.archive(listOf(index))
        refused("compressed", stored + TinyBundle.archive(files.toList(), ZipEntry.DEFLATED))
    }

    @Test fun compressedIndexIsRefused() =
        refused(BundleIndex.NAME, TinyBundle.archive(listOf(BundleIndex.NAME to ByteArray(9)), ZipEntry.DEFLATED))

    @Test fun wrongSizesAreRefused() = refused(
        "bytes",
        TinyBundle.archive { files, _ -> files["model.pte"] = files.getValue("model.pte") + 0 },
    )

    @Test fun alteredContentIsRefused() = refused(
        "SHA-256",
        TinyBundle.archive { files, _ -> files.getValue("model.pte").let { files["model.pte"] = it.copyOf().also { copy -> copy[500]++ } } },
    )

    @Test fun everyFlippedByteIsRefusedOrHarmless() {
        val sound = TinyBundle.archive()
        var harmless = 0
        for (at in sound.indices step 13) {
            val bent = sound.copyOf().also { it[at] = (it[at].toInt() xor 0x41).toByte() }
            try {
                unpack(bent)
                harmless++ // a date, or the spelling of what is not read: the files are the same
                for ((name, content) in TinyBundle.files()) assertArrayEquals(content, File(target, name).readBytes())
                target.deleteRecursively()
            } catch (error: Refusal) {
                assertFalse(target.exists())
            }
        }
        assertEquals(true, harmless < sound.size / 13 / 10)
    }

    @Test fun truncatedArchivesAreRefused() {
        val sound = TinyBundle.archive()
        for (size in 0 until sound.size step 97) refused("", sound.copyOf(size))
    }

    @Test fun missingFileIsRefused() = refused("missing", TinyBundle.archive { files, _ -> files.remove("golden.json") })

    @Test fun archiveOfSomethingElseIsRefused() = refused("begins with", TinyBundle.archive(listOf("AndroidManifest.xml" to ByteArray(5))))

    @Test fun whatIsNoArchiveIsRefused() = refused("not a bundle", ByteArray(1000) { it.toByte() })

    @Test fun futureSchemaIsRefused() = refused("schema_version", TinyBundle.archive { _, index -> index.put("schema_version", 2) })

    @Test fun bundleForAnotherPlatformIsRefused() = refused("kind", TinyBundle.archive { _, index -> index.put("kind", "ios") })

    @Test fun absurdSizesAreRefused() = refused(
        "size",
        TinyBundle.archive { _, index -> index.getJSONObject("files").getJSONObject("model.pte").put("size", Long.MAX_VALUE) },
    )

    @Test fun tooManyFilesAreRefused() = refused(
        "at most",
        TinyBundle.archive { _, index -> repeat(1001) { index.getJSONObject("files").put("f$it", TinyBundle.entry(ByteArray(0))) } },
    )

    @Test fun indexThatIsNoObjectIsRefused() {
        for (text in listOf("[]", "1", "{", "[".repeat(100_000), "null")) {
            refused(BundleIndex.NAME, TinyBundle.archive(listOf(BundleIndex.NAME to text.toByteArray())))
        }
    }

    @Test fun indexWithoutAFieldIsRefused() {
        for (name in TinyBundle.index(emptyMap()).keys().asSequence().filter { it != "recipe" }) {
            refused(name, TinyBundle.archive { _, index -> index.remove(name) })
            refused(name, TinyBundle.archive { _, index -> index.put(name, JSONObject.NULL) })
        }
    }

    @Test fun bundleLargerThanTheDiskIsRefused() = refused("free", TinyBundle.archive(), Unpacker(room = { 10 }))

    @Test fun unpackingCanBeStopped() {
        assertThrows(CancellationException::class.java) { unpack(TinyBundle.archive(), Unpacker(cancelled = { true })) }
        assertEquals(emptyList<File>(), temporary.root.listFiles().orEmpty().toList())
    }

    @Test fun progressReachesTheTotal() {
        var last = 0L to 0L
        unpack(TinyBundle.archive(), Unpacker { done, total -> last = done to total })
        assertEquals(TinyBundle.files().values.sumOf { it.size.toLong() }, last.first)
        assertEquals(last.first, last.second)
    }
}

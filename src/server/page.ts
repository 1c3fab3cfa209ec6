/** The form. */
export const PAGE = {
  type: 'text/html; charset=utf-8',
  body: `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>uploadr</title>
<form method="post" enctype="multipart/form-data">
<p><label>Title <input name="title" maxlength="50" required></label>
<p><label>File <input name="file" type="file" multiple required></label>
<p><button>Upload</button>
</form>
</html>
`,
}

"""`mmrlhf label`: annotators label answers about images on a web page.

Each module imports only those before it:

label_studio_argilla  rows of Label Studio's and Argilla's exports
uncertainty           which tasks are uncertain, from scores or a report of reward-eval
tasks                 tasks from rows of any format, and their form in the store
store                 one SQLite file: tasks, images, annotators, and events that are only appended
schedule              which task an annotator gets next
assignments           tasks shown, answers recorded once, undo: the store and the schedule together
typed_facts           facts from a typed sentence
forms                 the label in a submitted form, checked, by the mode of its task
guard                 addresses, hosts, origins, sizes and headers of requests
sessions              identity of annotators: pseudonyms, codes and cookies
pages                 what a task's page shows
images                images of tasks as a browser can show them
app                   the routes
results               labels of a store as votes, preferences, claims and facts
agreement             Krippendorff's alpha, gold questions, sides and speed
export                labels written to files
lead_report           the report for the person who runs a labelling
"""
